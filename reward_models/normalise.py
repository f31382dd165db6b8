"""Normalisation of a reward model's scores to mean 0 and variance 1.

A Bradley-Terry reward model is fixed only up to an additive constant, and its scale depends on its training. The reward
stage therefore measures both on responses of the policy that PPO starts from and stores them as `normalisation.json`
beside the model; whoever loads the model applies them. The ranking of responses does not change. This is not the
running normalisation of rewards or advantages during PPO.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reward_models.errors import RewardError

FILE_NAME = "normalisation.json"

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of a model's raw scores; the default leaves scores as they are.

    Attributes:
        mean: Mean of the raw scores.
        std: Their standard deviation (of the population: divided by their number), above 0.
        samples: On how many scores both were measured.

    Raises:
        RewardError: The mean is not finite, or the standard deviation is not a finite number above 0.
    """

    mean: float = 0.0
    std: float = 1.0
    samples: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise RewardError(
                f"A normalisation needs a finite mean and a finite std above 0, got mean {self.mean}, std {self.std}."
            )

    @classmethod
    def fit(cls, scores: Sequence[float] | Array) -> Normalisation:
        """Measure mean and standard deviation of `scores`, (N,).

        Raises:
            RewardError: There are fewer than two scores, one is not finite, or they do not differ.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.ndim != 1 or len(values) < 2:
            raise RewardError(f"Normalisation needs a list of at least 2 scores, got one of shape {values.shape}.")
        if not np.isfinite(values).all():
            first = int((~np.isfinite(values)).argmax())
            raise RewardError(f"Normalisation needs finite scores, but number {first} is {values[first]}.")
        mean, std = float(values.mean()), float(values.std())
        # Equal scores can differ by rounding alone; dividing by that would turn noise into reward.
        if std <= 1e-6 * max(1.0, abs(mean)):
            raise RewardError(
                f"All {len(values)} scores are {mean:.6g} (std {std:.3g}): the reward model does not tell responses "
                "apart. Check its training (learning rate, pairs), or that the responses differ."
            )
        return cls(mean, std, len(values))

    def apply(self, scores: Array) -> Array:
        """Return `(scores - mean) / std`, any shape; NaN stays NaN."""
        return np.asarray((scores - self.mean) / self.std, dtype=np.float64)

    def save(self, folder: str | Path) -> Path:
        """Write `normalisation.json` into `folder`."""
        path = Path(folder) / FILE_NAME
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Normalisation:
        """Read `normalisation.json` of `folder`.

        Raises:
            RewardError: The file is missing, is not JSON, or lacks a key or has a value that is not allowed.
        """
        path = Path(folder) / FILE_NAME
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            return cls(float(content["mean"]), float(content["std"]), int(content["samples"]))
        except FileNotFoundError as error:
            raise RewardError(f"There is no {path}; run the reward stage, which measures and writes it.") from error
        except (ValueError, KeyError, TypeError, RewardError) as error:
            raise RewardError(
                f"{path} must hold a JSON object with the numbers mean, std (above 0) and samples: "
                f"{type(error).__name__}: {error}. Run the reward stage again."
            ) from error
