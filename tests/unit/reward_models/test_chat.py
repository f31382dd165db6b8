"""Chat formatting on small tokenizers: every way from a conversation to ids must agree with the template's own."""

from __future__ import annotations

import pytest
from chat_helpers import CHATML, CORPUS, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reward_models.chat import (
    PLAIN_TEMPLATE,
    encode_dialogue,
    encode_prompt,
    encode_response,
    prepare_tokenizer,
    render_prompt,
    to_messages,
    turn_suffix_ids,
)
from reward_models.errors import ChatFormatError

# Trims contents, sets blanks around the response and has no generation prompt of its own.
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
# Ends turns with a marker of its own and a finished conversation with EOS.
DOUBLE_END = (
    "{% for m in messages %}{{ m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Opens a response that is still to be generated with a mark for thinking.
THINKING = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")

PROMPT = "Hello there, where is my order?"
RESPONSE = "Sorry! It is on its way."
FOLLOW_UP = [{"role": "user", "content": "Thanks a lot! When?"}]
SECOND = "Bye now."


def sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that writes blanks as marks, with one more before the very first word of a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = sorted(set("".join(CORPUS) + "User:\nAssistant!."))
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=["</s>"], initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def prepared(case: str) -> PreTrainedTokenizerFast:
    cases = {
        "chatml": lambda: byte_tokenizer(
            CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
        ),
        "inst": lambda: byte_tokenizer(INST, bos_token="<s>", eos_token="</s>", unk_token="<|endoftext|>"),
        "double end": lambda: byte_tokenizer(DOUBLE_END, eos_token="<|endoftext|>"),
        "plain": lambda: byte_tokenizer(None, eos_token="<|endoftext|>"),
        "plain with bos": lambda: byte_tokenizer(None, add_bos="<s>", bos_token="<s>", eos_token="</s>"),
        "sentencepiece": sentencepiece_like_tokenizer,
    }
    return prepare_tokenizer(cases[case]())


ALL = ["chatml", "inst", "double end", "plain", "plain with bos", "sentencepiece"]


@pytest.mark.parametrize("case", ALL)
def test_prompt_and_response_are_the_ids_of_the_whole_conversation(case: str) -> None:
    tokenizer = prepared(case)
    conversation = [*to_messages(PROMPT), assistant(RESPONSE)]

    ids = encode_prompt(tokenizer, PROMPT) + encode_response(tokenizer, PROMPT, RESPONSE)

    assert ids == encode_dialogue(tokenizer, conversation)
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    own = tokenizer.encode(rendered, add_special_tokens=False)
    assert own[: len(ids)] == ids
    assert ids[-1] == tokenizer.eos_token_id
    # What the template writes behind the response beyond EOS: blanks, and in one case a second EOS.
    assert tokenizer.decode(own[len(ids) :]).replace(tokenizer.eos_token, "").strip() == ""


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("stopped", [True, False])
def test_turns_join_to_the_ids_of_the_whole_conversation(case: str, stopped: bool) -> None:
    tokenizer = prepared(case)
    so_far = [*to_messages(PROMPT), assistant(RESPONSE), *FOLLOW_UP]
    first = encode_response(tokenizer, PROMPT, RESPONSE)
    if not stopped:  # the policy was cut off: it did not emit EOS
        first = first[:-1]

    ids = encode_prompt(tokenizer, PROMPT) + first + turn_suffix_ids(tokenizer, FOLLOW_UP, stopped=stopped)

    assert ids == encode_prompt(tokenizer, so_far)
    ids += encode_response(tokenizer, so_far, SECOND)
    assert ids == encode_dialogue(tokenizer, [*so_far, assistant(SECOND)])


def test_turn_suffix_is_the_text_of_the_template() -> None:
    tokenizer = prepared("chatml")
    after = [{"role": "tool", "content": "42"}, {"role": "user", "content": "And?"}]
    text = "\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(turn_suffix_ids(tokenizer, after, stopped=True)) == text
    assert tokenizer.decode(turn_suffix_ids(tokenizer, after, stopped=False)) == "<|im_end|>" + text


def test_system_message_of_the_template_is_kept_and_stands_only_at_the_start() -> None:
    tokenizer = prepared("chatml")
    assert render_prompt(tokenizer, "Hi").startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi")
    assert "Be kind" not in tokenizer.decode(turn_suffix_ids(tokenizer, FOLLOW_UP, stopped=True))


def test_plain_template_writes_every_role() -> None:
    tokenizer = prepared("plain")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert render_prompt(tokenizer, messages) == "System:\nBe kind.\nUser:\nHi\nAssistant:\n"
    assert tokenizer.chat_template == PLAIN_TEMPLATE


def test_plain_template_writes_bos_once_for_a_tokenizer_that_adds_it() -> None:
    tokenizer = prepared("plain with bos")
    ids = encode_dialogue(tokenizer, [*to_messages(PROMPT), assistant(RESPONSE)])
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_blanks_around_a_response_are_the_template_s() -> None:
    tokenizer = prepared("inst")
    assert tokenizer.decode(encode_response(tokenizer, PROMPT, " Sorry! ")) == " Sorry! </s>"
    assert tokenizer.decode(encode_response(tokenizer, PROMPT, "Sorry!", end=False)) == " Sorry!"


def test_response_stays_bare_when_the_template_opens_finished_turns_otherwise() -> None:
    tokenizer = prepare_tokenizer(byte_tokenizer(THINKING, eos_token="<|im_end|>"))
    assert tokenizer.decode(encode_response(tokenizer, PROMPT, RESPONSE)) == RESPONSE + "<|im_end|>"


def test_response_without_end_has_no_eos() -> None:
    tokenizer = prepared("chatml")
    with_end = encode_response(tokenizer, PROMPT, RESPONSE)
    assert encode_response(tokenizer, PROMPT, RESPONSE, end=False) == with_end[:-1]
    assert with_end[-1] == tokenizer.eos_token_id
    assert encode_response(tokenizer, PROMPT, "") == [tokenizer.eos_token_id]


@settings(max_examples=60, deadline=None)
@given(response=st.text(max_size=40))
def test_any_response_survives_and_has_one_eos(response: str) -> None:
    tokenizer = TOKENIZER
    ids = encode_response(tokenizer, PROMPT, response)
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) == response


TOKENIZER = prepared("chatml")


@pytest.mark.parametrize("marker", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_markers_inside_a_message_are_text(marker: str) -> None:
    tokenizer = prepared("chatml")  # EOS <|im_end|>, BOS <|im_start|>, pad <|endoftext|>
    token = tokenizer.convert_tokens_to_ids(marker)
    honest = encode_dialogue(tokenizer, [*to_messages("Hi"), assistant("Yes")])
    forged = encode_dialogue(tokenizer, [*to_messages(f"Hi{marker}"), assistant(f"Y{marker}es")])
    assert forged.count(token) == honest.count(token)
    assert token not in encode_response(tokenizer, f"Hi{marker}", f"Y{marker}es", end=False)
    after = [{"role": "user", "content": f"Hi{marker}"}]
    assert turn_suffix_ids(tokenizer, after, stopped=True).count(token) == turn_suffix_ids(
        tokenizer, [{"role": "user", "content": "Hi"}], stopped=True
    ).count(token)


def test_special_tokens_that_are_no_markers_are_left_alone() -> None:
    tokenizer = prepared("chatml")
    assert tokenizer.convert_tokens_to_ids("<filename>") in encode_prompt(tokenizer, "Save it as <filename> please")


def test_without_template_texts_are_joined_as_they_are() -> None:
    tokenizer = prepare_tokenizer(
        byte_tokenizer(CHATML, add_bos="<s>", bos_token="<s>", eos_token="</s>"), chat_template="none"
    )
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    plain = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    assert render_prompt(tokenizer, "2 + 2 =") == "2 + 2 ="
    assert encode_prompt(tokenizer, "2 + 2 =") == [bos, *plain("2 + 2 =")]
    assert encode_response(tokenizer, "2 + 2 =", " 4") == [*plain(" 4"), eos]
    assert encode_dialogue(tokenizer, [*to_messages("2 + 2 ="), assistant(" 4")]) == [bos, *plain("2 + 2 = 4"), eos]
    assert turn_suffix_ids(tokenizer, [{"role": "user", "content": " + 1 ="}], stopped=False) == [eos, *plain(" + 1 =")]
    assert encode_prompt(tokenizer, "<|im_start|>Hi")[1] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_every_prepared_tokenizer_has_a_pad_of_its_own() -> None:
    for case in ALL:
        tokenizer = prepared(case)
        ids = encode_dialogue(tokenizer, [*to_messages(PROMPT), assistant(RESPONSE)])
        assert tokenizer.pad_token_id is not None, case
        assert tokenizer.pad_token_id not in ids, case


def test_template_that_ends_inner_turns_otherwise_is_refused_for_several_turns() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{{ '<|im_end|>' if loop.last else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = prepare_tokenizer(byte_tokenizer(template, eos_token="<|im_end|>"))
    assert encode_response(tokenizer, "Hi", "Yes")[-1] == tokenizer.eos_token_id
    with pytest.raises(ChatFormatError, match=r"'<\|end\|>.*several turns"):
        turn_suffix_ids(tokenizer, FOLLOW_UP, stopped=True)


def test_tokenizer_that_was_not_prepared_is_noticed() -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|endoftext|>")
    with pytest.raises(ChatFormatError, match="prepare_tokenizer"):
        encode_dialogue(tokenizer, [*to_messages("Hi"), assistant("Yes")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "at least one message"),
        (None, "string or a list"),
        (["Hi"], r"Message 0 is 'Hi'"),
        ([{"role": "user", "content": "Hi"}, {"role": "user"}], "Message 1 is"),
        ([{"role": "user", "content": 3}], "both strings"),
    ],
)
def test_malformed_texts_are_refused(text: object, message: str) -> None:
    with pytest.raises(ChatFormatError, match=message):
        to_messages(text)  # type: ignore[arg-type]


def test_messages_are_copied() -> None:
    message = {"role": "user", "content": "Hi"}
    to_messages([message])[0]["content"] = "changed"
    assert message["content"] == "Hi"


def test_who_has_to_speak_last_is_checked() -> None:
    tokenizer = prepared("chatml")
    with pytest.raises(ChatFormatError, match="must end with a message of the user"):
        encode_prompt(tokenizer, [assistant("Hi")])
    with pytest.raises(ChatFormatError, match="last role is 'user'"):
        encode_dialogue(tokenizer, to_messages("Hi"))
    with pytest.raises(ChatFormatError, match="cannot end with a message of the assistant"):
        turn_suffix_ids(tokenizer, [assistant("Hi")], stopped=True)
