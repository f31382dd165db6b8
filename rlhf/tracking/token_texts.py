"""What each token of a response looks like as text, so that it can be read token by token. Nothing is shown here."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenTexts"]

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # how tokenizers show bytes that are no whole character


class TokenTexts:
    """Splits the text of token ids at the borders of its tokens; special tokens are spelt out.

    Args:
        tokenizer: The policy's.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[int, ...], str] = {}  # short sequences come again and again

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """Return one text a token; joined, they are the text of all of them.

        Each token is decoded behind the one before it, because a tokenizer may write a space only between two words.
        A character whose bytes are spread over several tokens stands on the last of them, the others are empty.
        """
        texts: list[str] = []
        context, start = 0, 0  # tokens from `start` on have no text yet; `context` is where decoding begins
        for end in range(1, len(token_ids) + 1):
            before, text = self._decode(token_ids[context:start]), self._decode(token_ids[context:end])
            if text.endswith(_UNFINISHED) and end < len(token_ids):
                texts.append("")
            else:
                texts.append(text[len(before) :])
                context, start = start, end
        return texts

    def _decode(self, token_ids: Sequence[int]) -> str:
        key = tuple(token_ids)
        if key not in self._known:
            decode: Callable[..., str] = self._tokenizer.decode
            self._known[key] = decode(list(key), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self._known[key]
