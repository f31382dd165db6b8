"""From sampled tokens to the text that environments and reward functions read."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from rlhf.generation.generator import Sample


def response_text(tokenizer: PreTrainedTokenizerBase, sampled: Sample, stop_strings: Sequence[str] = ()) -> str:
    """Return a response as text: without its stop token, and cut before the first stop string."""
    ids = sampled.token_ids[:-1] if sampled.stop_reason == "eos" else sampled.token_ids
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text[: min(cuts)] if (cuts := list(_find(text, stop_strings))) else text


def _find(text: str, stop_strings: Sequence[str]) -> Iterator[int]:
    for stop in stop_strings:
        if stop in text:
            yield text.index(stop)
