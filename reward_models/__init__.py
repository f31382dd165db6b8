"""Reward functions and trainable reward models. The lowest package: imports neither `envs` nor `rlhf`."""
