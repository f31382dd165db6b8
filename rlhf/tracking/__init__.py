"""Metrics, rollouts and reports: everything a run shows."""
