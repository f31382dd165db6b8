"""Making a tokenizer ready for conversations: its chat template, EOS, pad and padding side are settled, once.

`reward_models.chat` encodes with what this leaves. No model is resized here.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from reward_models.chat_render import PLAIN_TEMPLATE, Message, around_response, render, special_tokens
from reward_models.errors import ChatFormatError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode", "leading_ids", "prepare_tokenizer"]

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
        start = "".join(tokenizer.convert_ids_to_tokens(leading_ids(tokenizer)))
        tokenizer.chat_template = start + PLAIN_TEMPLATE
    elif chat_template != "auto":
        tokenizer.chat_template = _read_template(chat_template)
    _settle_eos(tokenizer)
    _settle_pad(tokenizer)
    tokenizer.padding_side = "right"
    return tokenizer


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


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text, without what the tokenizer adds by itself."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer sets before every text by itself (BOS, [CLS]), often none."""
    bare, full = encode(tokenizer, "a"), list(tokenizer.encode("a"))
    width = len(bare)
    starts = [i for i in range(len(full) - width + 1) if full[i : i + width] == bare]
    return full[: starts[0]] if starts else []
