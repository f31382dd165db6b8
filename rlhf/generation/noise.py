"""Counter-based randomness: the noise of a response is a function of its name, not of when or where it is drawn.

A response is named by (seed, iteration, prompt, sample index). Its uniform numbers come from a Philox generator
(Salmon et al., 2011) keyed by a hash of that name, so batch size, order and number of processes cannot change them.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def response_key(seed: int, iteration: int, prompt_ids: Sequence[int], sample_index: int, prompt_index: int = 0) -> int:
    """Return the 128-bit name of one response.

    Args:
        seed: The run's seed.
        iteration: Number of the rollout.
        prompt_ids: The context; in a later turn of an episode everything up to it, so turns need no number.
        sample_index: Which of several samples of the prompt.
        prompt_index: Number of the prompt, which tells equal prompts of different rows apart.
    """
    head = np.array([seed, iteration, prompt_index, sample_index, len(prompt_ids)], dtype=np.int64).tobytes()
    body = np.asarray(prompt_ids, dtype=np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(head + body, digest_size=16).digest(), "little")


def uniforms(key: int, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1), the same for the same key; a longer draw begins with the shorter one."""
    return np.random.Generator(np.random.Philox(key=key)).random(count)
