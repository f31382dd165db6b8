"""The KL coefficient: fixed, or adapted so that the policy stays at a given distance from the reference."""

from dataclasses import dataclass

from rlhf.config.ppo import KLConfig


@dataclass
class FixedKLController:
    """A coefficient that stays."""

    coefficient: float

    def update(self, kl: float, episodes: int) -> None:
        """Do nothing."""


@dataclass
class AdaptiveKLController:
    """Ziegler et al. (2019), section 2.2: b <- b (1 + clip(KL / target - 1, -0.2, 0.2) * episodes / horizon)."""

    coefficient: float
    target: float  # nats per episode
    horizon: int  # episodes

    def update(self, kl: float, episodes: int) -> None:
        """Move the coefficient after a rollout.

        Args:
            kl: Mean over the episodes of the KL summed over their tokens, in nats.
            episodes: Episodes in the rollout.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * episodes / self.horizon


KLController = FixedKLController | AdaptiveKLController


def kl_controller(settings: KLConfig) -> KLController:
    """Return the configured controller, at its first coefficient."""
    if settings.controller == "adaptive":
        return AdaptiveKLController(settings.coefficient, settings.target, settings.horizon)
    return FixedKLController(settings.coefficient)
