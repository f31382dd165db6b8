"""Token texts: joined they are the decoded text, a space stands on the token that brings it, no character is broken."""

import pytest
from chat_helpers import byte_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rlhf.tracking.token_texts import TokenTexts


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(eos_token="<|im_end|>")


@pytest.mark.parametrize("text", ["Your order is on its way.", "Grüße! 北京 \N{PARTY POPPER}x", " a  b\n\n c", ""])
def test_joined_they_are_the_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    texts = TokenTexts(tokenizer)(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_a_character_of_several_tokens_stands_on_its_last_one(tokenizer):
    ids = tokenizer("a\N{PARTY POPPER}b")["input_ids"]
    assert len(ids) == 6
    assert TokenTexts(tokenizer)(ids) == ["a", "", "", "", "\N{PARTY POPPER}", "b"]


def test_a_character_that_is_cut_off_is_shown_as_such(tokenizer):
    ids = tokenizer("a\N{PARTY POPPER}")["input_ids"][:-1]
    assert "".join(TokenTexts(tokenizer)(ids)) == "a\N{REPLACEMENT CHARACTER}"


def test_a_stop_token_is_spelt_out(tokenizer):
    ids = [*tokenizer("Bye")["input_ids"], tokenizer.eos_token_id]
    assert TokenTexts(tokenizer)(ids)[-1] == "<|im_end|>"


def test_a_tokenizer_that_drops_the_first_space_keeps_those_between_words():
    vocabulary = {"<unk>": 0, "▁Hello": 1, "▁there": 2, "!": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    wordy = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert TokenTexts(wordy)([1, 2, 3, 1]) == ["Hello", " there", "!", " Hello"]
