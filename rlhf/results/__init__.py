"""Results: a run folder read back, for people's own analyses and for the report.

Nothing here writes, draws or computes what a stage should have computed. `rlhf.load_run` is the door.
"""
