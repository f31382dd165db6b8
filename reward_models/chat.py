"""Chat formatting: the one place where a tokenizer is made ready and conversations become token ids.

Supervised fine-tuning, the reward model, the rollouts of PPO and the environments all pass through here, so that what
a model is trained on, sampled from and scored on has the same form. This module settles template, EOS and pad, and
encodes prompts, responses, whole conversations and what lies between two turns; `chat_render` makes the text. It
neither batches, pads nor truncates, and it resizes no model.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from reward_models.chat_render import (
    PLAIN_TEMPLATE,
    Message,
    Text,
    around_response,
    render,
    special_tokens,
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
    "encode_dialogue",
    "encode_prompt",
    "encode_response",
    "prepare_tokenizer",
    "render_prompt",
    "to_messages",
    "turn_suffix_ids",
]

_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")
_EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|eos|>")
_RARE_TEXT = "a \u2603 \ue000 \U000e0001 \x00"  # makes a tokenizer that has an unknown token produce it

logger = logging.getLogger(__name__)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str = "auto") -> PreTrainedTokenizerBase:
    """Set template, EOS, pad and padding side of `tokenizer`, in place, and return it.

    Afterwards `eos_token` is the token that ends an assistant turn and `pad_token` is a token that no text contains. If
    no existing special token can serve, one is added; then `len(tokenizer)` exceeds the model's embedding, which
    whoever loads the model has to resize.

    Args:
        tokenizer: Any tokenizer of transformers.
        chat_template: `"auto"` keeps the tokenizer's template, or takes `PLAIN_TEMPLATE` if it has none; `"plain"`
            takes `PLAIN_TEMPLATE`; `"none"` joins prompt and response as they are; anything else is the path of a Jinja
            file.

    Raises:
        ChatFormatError: The file cannot be read, the template does not render, ignores `add_generation_prompt`, or does
            not end an assistant turn with a special token.
    """
    if chat_template == "none":
        tokenizer.chat_template = None
    elif chat_template == "plain" or (chat_template == "auto" and not tokenizer.chat_template):
        start = "".join(tokenizer.convert_ids_to_tokens(_leading_ids(tokenizer)))
        tokenizer.chat_template = start + PLAIN_TEMPLATE
    elif chat_template != "auto":
        tokenizer.chat_template = _read_template(chat_template)
    _settle_eos(tokenizer)
    _settle_pad(tokenizer)
    tokenizer.padding_side = "right"
    return tokenizer


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
    """Return the token ids of an assistant's `response` to `prompt`, tokenised apart from the prompt.

    The text is what the template writes between its opening of the turn and EOS. So where tokenisation does not merge
    across the border, `encode_prompt(...) + encode_response(...)` are the ids of the whole conversation.

    Args:
        tokenizer: A tokenizer that went through `prepare_tokenizer`.
        prompt: What the response answers.
        response: The text of the response, without end-of-turn token.
        end: Whether EOS is appended; False for a response that was cut off.
    """
    opening = render_prompt(tokenizer, prompt)
    turn: Message = {"role": "assistant", "content": response}
    body, blank = _split_closing(tokenizer, render(tokenizer, [*to_messages(prompt), turn]))
    # Some templates open a finished turn otherwise than one to be generated (thinking marks): take the bare response.
    text = body[len(opening) :] if body.startswith(opening) else spell_out(tokenizer, response)
    return (
        [*_encode_inside(tokenizer, text + blank), tokenizer.eos_token_id] if end else _encode_inside(tokenizer, text)
    )


def encode_dialogue(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Return the token ids of a whole conversation, from its start to the EOS of its last response.

    Raises:
        ChatFormatError: The conversation does not end with a message of the assistant, or does not render.
    """
    messages = to_messages(messages)
    if messages[-1]["role"] != "assistant":
        raise ChatFormatError(
            f"A whole conversation must end with a message of the assistant, but its last role is "
            f"{messages[-1]['role']!r}. Add the response."
        )
    body, blank = _split_closing(tokenizer, render(tokenizer, messages))
    return [*_encode_start(tokenizer, body + blank), tokenizer.eos_token_id]


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


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _encode_start(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode text that begins a sequence: a template writes its own BOS, raw text gets the tokenizer's."""
    ids = _encode(tokenizer, text)
    return ids if tokenizer.chat_template else _leading_ids(tokenizer) + ids


def _encode_inside(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode text that does not begin a sequence: behind a token, as some set a blank before a first word."""
    return _encode(tokenizer, f"{tokenizer.eos_token}{text}")[1:]


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer sets before every text by itself (BOS, [CLS]), often none."""
    bare, full = _encode(tokenizer, "a"), list(tokenizer.encode("a"))
    width = len(bare)
    starts = [i for i in range(len(full) - width + 1) if full[i : i + width] == bare]
    return full[: starts[0]] if starts else []


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


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatFormatError(
            f"chat_template is {path!r}, which cannot be read as a file ({error}). "
            "Allowed are 'auto', 'plain', 'none' or the path of a Jinja file."
        ) from error


def _settle_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make EOS the token that ends an assistant turn: the policy learns to write it, the sampler stops at it."""
    end = _turn_end(tokenizer) if tokenizer.chat_template else None
    if end is None and tokenizer.eos_token is None:
        special = special_tokens(tokenizer)
        names = [tokenizer.sep_token, *(name for name in _EOS_NAMES if name in special), "<|eos|>"]
        tokenizer.add_special_tokens({"eos_token": next(name for name in names if name)})
        end = _turn_end(tokenizer) if tokenizer.chat_template else None  # the template may write EOS by its name
    if not tokenizer.chat_template:
        return
    if end is None:
        raise ChatFormatError(
            f"The chat template does not write EOS {tokenizer.eos_token!r}, nor any other special token, after a "
            "response, so its end could not be learnt. Set chat_template to 'plain' or to a Jinja file that writes "
            "{{ eos_token }} there."
        )
    if end != tokenizer.eos_token:
        logger.warning("EOS was %r; the chat template ends a turn with %r, which is used.", tokenizer.eos_token, end)
        tokenizer.eos_token = end


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the special token that the template writes right after a response, None if it writes another text.

    Raises:
        ChatFormatError: The template leaves the response out, or ignores `add_generation_prompt`.
    """
    prompt: list[Message] = [{"role": "user", "content": "a"}]
    before, after = around_response(tokenizer)
    closed, opened = render(tokenizer, prompt), render(tokenizer, prompt, add_generation_prompt=True)
    if closed == opened and before.strip() != opened.strip():
        raise ChatFormatError(
            f"The chat template ignores add_generation_prompt: it opens a response with {before[len(closed) :]!r}, but "
            "leaves that out of the prompt. Set chat_template to 'plain' or to a Jinja file that honours it."
        )
    ends = [token for token in special_tokens(tokenizer) if after.lstrip().startswith(token)]
    return max(ends, key=len, default=None)


def _settle_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Choose a pad token that no text contains, so that a padded position cannot be mistaken for a real one."""
    special = special_tokens(tokenizer)
    names = [tokenizer.pad_token, *(name for name in _PAD_NAMES if name in special)]
    for token in [*names, tokenizer.unk_token, tokenizer.bos_token]:
        if token is not None and not _is_used(tokenizer, token):
            tokenizer.pad_token = token
            return
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})


def _is_used(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Return whether `token` occurs in conversations: as EOS, as marker of the template, as BOS or as unknown token."""
    turn: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    # Without a template prompts may bring their own markers, of which BOS is the likeliest.
    markers = render(tokenizer, turn, add_generation_prompt=True) if tokenizer.chat_template else tokenizer.bos_token
    emitted = tokenizer.encode(_RARE_TEXT)
    return token == tokenizer.eos_token or token in str(markers) or tokenizer.convert_tokens_to_ids(token) in emitted
