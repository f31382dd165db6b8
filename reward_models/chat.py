"""Chat formatting: the one place where conversations become token ids.

Supervised fine-tuning, the reward model, the rollouts of PPO and the environments all pass through here, so that what
a model is trained on, sampled from and scored on has the same form. Prompts, responses, whole conversations and what
lies between two turns are encoded here; `chat_render` makes the text, `chat_prepare` settles template, EOS and pad.
Nothing is batched, padded or truncated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reward_models.chat_prepare import encode, leading_ids, prepare_tokenizer
from reward_models.chat_render import (
    PLAIN_TEMPLATE,
    Message,
    Text,
    around_response,
    render,
    spell_out,
    to_messages,
)
from reward_models.errors import ChatFormatError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "PLAIN_TEMPLATE",
    "Message",
    "Text",
    "closing_tokens",
    "encode_dialogue",
    "encode_prompt",
    "encode_response",
    "prepare_tokenizer",
    "render_prompt",
    "to_messages",
    "turn_suffix_ids",
]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> str:
    """Return `prompt` as text, up to and including the template's opening of the assistant's turn.

    Raises:
        ChatFormatError: The prompt is malformed, ends with a message of the assistant, or does not render.
    """
    messages = to_messages(prompt)
    if messages[-1]["role"] == "assistant":
        raise ChatFormatError(
            "A prompt must end with a message of the user, a tool or the system, but its last role is 'assistant'. "
            "Move that message into the response, or add the user's answer to it."
        )
    return render(tokenizer, messages, add_generation_prompt=True)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Return the token ids of `render_prompt`, with the tokenizer's own BOS if there is no template to write it."""
    return _encode_start(tokenizer, render_prompt(tokenizer, prompt))


def encode_response(tokenizer: PreTrainedTokenizerBase, prompt: Text, response: str, *, end: bool = True) -> list[int]:
    """Return the token ids of an assistant's `response` to `prompt`, as they stand in the whole conversation.

    The text is what the template writes between its opening of the turn and EOS, and always holds the response. Where
    tokenisation merges across the border, the response is tokenised apart from the prompt.

    Args:
        tokenizer: A tokenizer that went through `prepare_tokenizer`.
        prompt: What the response answers.
        response: The text of the response, without end-of-turn token.
        end: Whether EOS is appended; False for a response that was cut off.
    """
    opening, text, blank = _turn(tokenizer, prompt, response)
    if end:
        return [*_encode_behind(tokenizer, opening, text + blank), tokenizer.eos_token_id]
    return _encode_behind(tokenizer, opening, text)


def encode_dialogue(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Return the token ids of a whole conversation, from its start to the EOS of its last response.

    The last response stands in it whole, also where the template would drop a part of a finished turn (reasoning): it
    is read as the policy wrote it.

    Raises:
        ChatFormatError: The conversation does not end with a message of the assistant, or does not render.
    """
    messages = to_messages(messages)
    *prompt, last = messages
    if last["role"] != "assistant":
        raise ChatFormatError(
            f"A whole conversation must end with a message of the assistant, but its last role is "
            f"{last['role']!r}. Add the response."
        )
    if prompt and prompt[-1]["role"] != "assistant":
        text = "".join(_turn(tokenizer, prompt, last["content"]))
    else:  # nothing is answered: the template alone says what stands before the response
        text = "".join(_split_closing(tokenizer, render(tokenizer, messages)))
    return [*_encode_start(tokenizer, text), tokenizer.eos_token_id]


def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a whole conversation has behind its last response: EOS and what stands before it."""
    after = around_response(tokenizer)[1]
    return len(_encode_inside(tokenizer, after.removesuffix(after.lstrip()))) + 1


def turn_suffix_ids(tokenizer: PreTrainedTokenizerBase, messages_after: list[Message], *, stopped: bool) -> list[int]:
    """Return the token ids between one response of the policy and its next one.

    They are found by rendering a stand-in for the response and cutting behind it. What the policy wrote stays the ids
    that it sampled: `prompt ids + response ids + suffix ids` is the prompt of the next turn.

    Args:
        tokenizer: A tokenizer that went through `prepare_tokenizer`.
        messages_after: What the environment says after the response.
        stopped: Whether the policy's response already ends with EOS; if not, the suffix begins with it.

    Raises:
        ChatFormatError: The messages are malformed, or the template ends a turn that is not the last without EOS.
    """
    messages_after = to_messages(messages_after)
    if messages_after[-1]["role"] == "assistant":
        raise ChatFormatError("What an environment says between two turns cannot end with a message of the assistant.")
    tail = around_response(tokenizer, messages_after)[1].lstrip()
    eos = str(tokenizer.eos_token)
    if not tail.startswith(eos):
        raise ChatFormatError(
            f"The chat template ends a turn in the middle of a conversation with {tail[:20]!r}, not with EOS {eos!r}, "
            "so it cannot be used for several turns. Set chat_template to 'plain' or to a Jinja file that writes EOS "
            "there."
        )
    ids = _encode_inside(tokenizer, tail[len(eos) :])
    return ids if stopped else [tokenizer.eos_token_id, *ids]


def _encode_start(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode text that begins a sequence: a template writes its own BOS, raw text gets the tokenizer's."""
    ids = encode(tokenizer, text)
    return ids if tokenizer.chat_template else leading_ids(tokenizer) + ids


def _encode_inside(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode text that does not begin a sequence: behind a token, as some set a blank before a first word."""
    return encode(tokenizer, f"{tokenizer.eos_token}{text}")[1:]


def _encode_behind(tokenizer: PreTrainedTokenizerBase, opening: str, text: str) -> list[int]:
    """Encode `text` as it stands behind `opening`; apart from it where tokens would reach across the border."""
    before, whole = _encode_start(tokenizer, opening), _encode_start(tokenizer, opening + text)
    return whole[len(before) :] if whole[: len(before)] == before else _encode_inside(tokenizer, text)


def _turn(tokenizer: PreTrainedTokenizerBase, prompt: Text, response: str) -> tuple[str, str, str]:
    """Return a conversation up to the opening of its last turn, that turn's text, and the blanks before its EOS.

    Some templates open a finished turn otherwise than one to be generated, or drop what the policy wrote before its
    answer (`<think>...</think>`). Then the turn is the response itself, behind the opening that the policy is given;
    what this opening has written already is not repeated.
    """
    opening = render_prompt(tokenizer, prompt)
    turn: Message = {"role": "assistant", "content": response}
    body, blank = _split_closing(tokenizer, render(tokenizer, [*to_messages(prompt), turn]))
    text, written = body.removeprefix(opening), spell_out(tokenizer, response)
    if body.startswith(opening) and written.strip() in text:
        return opening, text, blank
    return opening, spell_out(tokenizer, response[_overlap(opening, response) :]), blank


def _overlap(opening: str, response: str) -> int:
    """Return how many characters a response repeats of the end of an opening; blanks alone are no repetition."""
    lengths = range(min(len(opening), len(response)), 0, -1)
    longest = next((n for n in lengths if opening.endswith(response[:n])), 0)
    return longest if response[:longest].strip() else 0


def _split_closing(tokenizer: PreTrainedTokenizerBase, rendered: str) -> tuple[str, str]:
    """Cut what follows the last response off a rendered conversation.

    Returns:
        The conversation up to the end of the response, and the blanks that the template writes between it and EOS.
    """
    closing = around_response(tokenizer)[1]
    ending = closing.lstrip()
    if not rendered.endswith(closing) or not ending.startswith(str(tokenizer.eos_token)):
        raise ChatFormatError(
            f"The chat template ends a response with {closing!r}, not with EOS {tokenizer.eos_token!r}; "
            "pass the tokenizer through prepare_tokenizer first."
        )
    return rendered.removesuffix(closing), closing.removesuffix(ending)
