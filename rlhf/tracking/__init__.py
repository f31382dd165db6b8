"""Tracking: what a run writes for people to look at, as metrics, rollouts and tables, and its progress in the terminal.

`metrics` names every number once, `tracker` hands them to the sinks: metrics.jsonl, Parquet, TensorBoard, W&B. It shows
and never decides.
"""
