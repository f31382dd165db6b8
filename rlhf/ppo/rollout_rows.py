"""The table of rollouts: one row an episode, with everything that was trained on, token by token.

Made from the episodes and the batch of an iteration; how rows are stored and shown is tracking's business.
"""

from collections.abc import Callable, Sequence
from typing import Any

from rlhf.episodes.episode import Episode
from rlhf.ppo.batch import AdvantagedRollout

TokenTexts = Callable[[Sequence[int]], list[str]]


def rollout_rows(
    episodes: Sequence[Episode],
    trained: Sequence[Episode],
    batch: AdvantagedRollout | None,
    token_texts: TokenTexts,
    kl_coefficient: float,
) -> list[dict[str, Any]]:
    """Return one row an episode; an episode that was not trained on has no numbers of the models.

    Args:
        episodes: All episodes of the iteration.
        trained: Those of them that are the batch, in its order.
        batch: None if there are none.
        token_texts: Token ids of one turn -> the text of each.
        kl_coefficient: Of the iteration.

    Returns:
        Rows for `rlhf.tracking.rollouts.typed_rows`; docs/rollouts.md explains their columns.
    """
    place = {id(episode): number for number, episode in enumerate(trained)}
    rows = []
    for episode in episodes:
        tokens = _tokens(episode, token_texts)
        if batch is not None and id(episode) in place:
            numbers = _numbers(episode, batch, place[id(episode)], kl_coefficient)
            tokens = [token | number for token, number in zip(tokens, numbers, strict=True)]
        rows.append(_row(episode, tokens))
    return rows


def _row(episode: Episode, tokens: list[dict[str, Any]]) -> dict[str, Any]:
    sums = ("reward_penalty", "reward_kl", "reward", "kl")
    return {
        "index": episode.index,
        "sample_index": episode.sample_index,
        "environment": episode.environment or None,
        "prompt": episode.prompt,
        "response": "\n\n".join(episode.responses),
        "score": episode.score,
        **{name: sum(token[name] for token in tokens) for name in sums if tokens and name in tokens[0]},
        "length": episode.response_length,
        "stop_reason": episode.stop_reason,
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        **{f"component/{name}": value for name, value in episode.components.items()},
        "messages": _messages(episode),
        "tokens": tokens,
        "token_ids": episode.token_ids,
        "response_mask": episode.response_mask,
    }


def _tokens(episode: Episode, token_texts: TokenTexts) -> list[dict[str, Any]]:
    """The policy's own tokens as they were sampled; those between two of the environment's are one turn."""
    turns: list[list[int]] = []
    before = False
    for position, own in enumerate(episode.response_mask):
        if own and not before:
            turns.append([])
        if own:
            turns[-1].append(position)
        before = own
    return [
        {
            "id": episode.token_ids[position],
            "text": text,
            "turn": turn,
            "sampled_logprob": episode.sampled_logprobs[position],
        }
        for turn, positions in enumerate(turns, 1)
        for position, text in zip(positions, token_texts([episode.token_ids[p] for p in positions]), strict=True)
    ]


def _numbers(episode: Episode, batch: AdvantagedRollout, row: int, kl_coefficient: float) -> list[dict[str, float]]:
    """What the models said of each own token, and what its reward is made of.

    reward = reward_score + reward_penalty + reward_kl, unless rewards are whitened.
    """
    mask = batch.mask[row]
    fields = {
        "logprob": batch.logprobs,
        "ref_logprob": batch.ref_logprobs,
        "kl": batch.kl,
        "reward": batch.rewards,
        "value": batch.values,
        "advantage": batch.advantages,
        "return": batch.returns,
    }
    columns = {name: values[row][mask].tolist() for name, values in fields.items()}
    after_penalty = batch.env_rewards[row][mask]
    scores = [reward for reward, own in zip(episode.rewards, episode.response_mask, strict=True) if own]
    columns["reward_score"] = scores
    columns["reward_penalty"] = (after_penalty - after_penalty.new_tensor(scores)).tolist()
    columns["reward_kl"] = [-kl_coefficient * kl for kl in columns["kl"]]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _messages(episode: Episode) -> list[dict[str, Any]]:
    """The conversation with the turn of each message: 0 for the prompt, k for response k and what came behind it."""
    prompt = len(episode.prompt) if isinstance(episode.prompt, list) else 1
    turn, messages = 0, []
    for number, message in enumerate(episode.messages):
        turn += number >= prompt and message["role"] == "assistant"
        messages.append({"role": message["role"], "content": message["content"], "turn": turn})
    return messages
