"""The PPO engine."""
