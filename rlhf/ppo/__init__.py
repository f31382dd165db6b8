"""The PPO engine: sample, score, estimate advantages, update.

Reading order: `trainer` (the loop), `rollout` and `sampler` (where episodes come from), `batch` (how they are laid
out), `token_rewards`, `advantages` and `losses` (the mathematics, one formula in one place).
"""
