"""Small faults in the PPO engine, each of which some fast test must notice: `python -m tests.mutants`."""
