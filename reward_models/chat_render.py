"""Conversations as text: messages, the plain template, and rendering with a tokenizer's chat template.

The lower half of `reward_models.chat`, which turns the text into token ids and is what other packages import. Three
kinds of text stand in a conversation: the template's markers, what people and environments write, and what the policy
writes. Markers spelt out inside a message are taken as text, so that nobody ends or opens a turn by writing its token.
Without a template texts are joined as they are, markers included.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from reward_models.errors import ChatFormatError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]  # role and content, both text; tool calls of the assistant besides
Text = str | list[Message]

# A line break stands between a role and its text because common tokenizers never merge it with the word behind it: a
# response that is tokenised apart from its prompt then has the same ids as inside the whole conversation.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)

# Marks of reasoning. The policy writes them itself, and neither opens nor ends a turn by it.
_REASONING = frozenset(
    {"<think>", "</think>", "<thinking>", "</thinking>", "<|begin_of_thought|>", "<|end_of_thought|>"}
)
_STAND_IN = "Sentinel7r3sponse"  # stands for a response; no template and no tokenizer treats it specially

logger = logging.getLogger(__name__)


def to_messages(text: Text) -> list[Message]:
    """Return `text` as a list of messages; a string is one message of the user.

    Raises:
        ChatFormatError: A message lacks a role or a content, or one of them is not a string, or there is no message.
    """
    if isinstance(text, str):
        return [{"role": "user", "content": text}]
    if not isinstance(text, list) or not text:
        raise ChatFormatError(f"A text must be a string or a list of at least one message, got {text!r}.")
    for i, message in enumerate(text):
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ChatFormatError(
                f"Message {i} is {message!r}; a message is a dict whose 'role' and 'content' are both strings."
            )
    return [dict(message) for message in text]


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
    """Return the conversation as text, with the opening of the assistant's next turn if asked for.

    Raises:
        ChatFormatError: The template refuses the conversation, leaves its tool calls out or is not valid Jinja.
    """
    calls = any(message.get("tool_calls") for message in messages)
    text = _written(tokenizer, messages, add_generation_prompt)
    if calls and text == _written(tokenizer, [_without_calls(message) for message in messages], add_generation_prompt):
        raise ChatFormatError(
            "The chat template does not write the tool calls of the assistant, so they would be lost. Write them into "
            "the content, or set chat_template to a Jinja file that writes tool_calls."
        )
    return text


def _written(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        ends = {"assistant": str(tokenizer.eos_token)}
        return "".join(message["content"] + ends.get(message["role"], "") for message in messages)
    import jinja2  # not paid by a process that only reads the types above

    safe = [{**message, "content": spell_out(tokenizer, message["content"])} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=add_generation_prompt))
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ChatFormatError(
            f"The chat template cannot render a conversation with the roles [{roles}]: {error}. "
            "Change the conversation, or set chat_template to 'plain' or to a Jinja file that allows it."
        ) from error


def _without_calls(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "tool_calls"}


def around_response(tokenizer: PreTrainedTokenizerBase, messages_after: list[Message] | None = None) -> tuple[str, str]:
    """Return what the template writes before and after the response of a short conversation.

    Args:
        tokenizer: The tokenizer with its template.
        messages_after: What follows the response, with the opening of the next turn; None if the conversation ends.

    Raises:
        ChatFormatError: The template leaves the response out.
    """
    turn: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _STAND_IN}]
    rendered = render(tokenizer, [*turn, *(messages_after or [])], add_generation_prompt=messages_after is not None)
    before, response, after = rendered.partition(_STAND_IN)
    if not response:
        raise ChatFormatError(
            "The chat template does not write the content of the assistant's message. "
            "Set chat_template to 'plain' or to a Jinja file that does."
        )
    return before, after


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return all tokens that the tokenizer marks as special, whether or not they have a name such as EOS."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    return {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)


def spell_out(tokenizer: PreTrainedTokenizerBase, content: str) -> str:
    """Break up the markers of a conversation inside a message, so that they are tokenised as text.

    Special tokens that neither the template nor the tokenizer writes (`<filename>` of some code models) are left alone,
    and so are marks of reasoning.
    """
    if not tokenizer.chat_template:
        return content
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    for token in special_tokens(tokenizer) - _REASONING:
        if token in content and (token in named or token in str(tokenizer.chat_template)):
            logger.warning("A message contains the special token %r; it is taken as text.", token)
            content = content.replace(token, f"{token[0]} {token[1:]}")
    return content
