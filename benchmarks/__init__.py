"""Measurements: this engine against TRL's PPO trainer, and how its cost grows. Run by `make bench`; not installed."""
