"""Making a tokenizer ready: its EOS ends an assistant turn, its pad is in no text, its template is usable."""

from __future__ import annotations

import pytest
from chat_helpers import CHATML, byte_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reward_models.chat import encode_dialogue, prepare_tokenizer, to_messages
from reward_models.errors import ChatFormatError


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows six words and turns all others into `<unk>`."""
    words = ["<unk>", "</s>", "<pad>", "User", "Assistant", ":", "a"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<unk>", "</s>", *([special["pad_token"]] if "pad_token" in special else [])])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_preparing_moves_pad_off_eos_and_is_idempotent(tmp_path) -> None:
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = prepare_tokenizer(byte_tokenizer(CHATML, padding_side="left", **special))
    expected = ("<|im_end|>", "<|endoftext|>", "right", CHATML)
    size = len(tokenizer)
    state = lambda t: (t.eos_token, t.pad_token, t.padding_side, t.chat_template)  # noqa: E731
    assert state(tokenizer) == expected
    assert state(prepare_tokenizer(tokenizer)) == expected
    tokenizer.save_pretrained(tmp_path)
    loaded = prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(tmp_path))
    assert state(loaded) == expected
    assert len(loaded) == size


def test_pad_that_is_already_right_is_kept() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<filename>"))
    assert tokenizer.pad_token == "<filename>"


def test_unknown_token_that_texts_produce_is_no_pad() -> None:
    tokenizer = word_tokenizer(unk_token="<unk>", eos_token="</s>", pad_token="<unk>")
    size = len(tokenizer)
    prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token == "<|pad|>"
    assert (tokenizer.pad_token_id, len(tokenizer)) == (size, size + 1)


def test_named_pad_of_the_vocabulary_is_found() -> None:
    tokenizer = word_tokenizer(unk_token="<unk>", eos_token="</s>", pad_token="<pad>")
    tokenizer.pad_token = None
    assert prepare_tokenizer(tokenizer).pad_token == "<pad>"


@pytest.mark.parametrize(("template", "chosen"), [("auto", "<s>"), ("none", "<|pad|>")])
def test_bos_is_a_pad_only_where_nothing_writes_it(template: str, chosen: str) -> None:
    backend = word_tokenizer(unk_token="<unk>", eos_token="</s>", bos_token="<s>")
    assert prepare_tokenizer(backend, template).pad_token == chosen


def test_end_of_turn_of_the_template_becomes_eos() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(CHATML, eos_token="<|endoftext|>", pad_token="<|endoftext|>"))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("template", ["plain", "none"])
def test_missing_eos_is_found_among_the_special_tokens(template: str) -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(), template)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert (
        encode_dialogue(tokenizer, [*to_messages("a"), {"role": "assistant", "content": "b"}])[-1]
        == tokenizer.eos_token_id
    )


def test_missing_eos_is_added_where_nothing_can_serve() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), "none")
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|eos|>", "<|pad|>", 4)


def test_template_from_a_file(tmp_path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML, encoding="utf-8")
    assert prepare_tokenizer(byte_tokenizer(eos_token="<|im_end|>"), str(path)).chat_template == CHATML


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", r"does not write EOS '<\|im_end\|>'"),
        (CHATML.partition("{% if add_generation_prompt")[0], "ignores add_generation_prompt"),
        ("{% for m in messages %}{{ m['content']", "cannot render"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{{ eos_token }}", "does not write the content of the assistant"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_with_a_way_out(template: str, message: str, tmp_path) -> None:
    path = tmp_path / "bad.jinja"
    path.write_text(template, encoding="utf-8")
    with pytest.raises(ChatFormatError, match=message) as caught:
        prepare_tokenizer(byte_tokenizer(eos_token="<|im_end|>"), str(path))
    assert "plain" in str(caught.value)


def test_template_file_that_is_missing() -> None:
    with pytest.raises(ChatFormatError, match=r"'auot'.*cannot be read.*'auto', 'plain', 'none'"):
        prepare_tokenizer(byte_tokenizer(eos_token="<|im_end|>"), "auot")
