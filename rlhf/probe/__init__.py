"""Probes: whether the trainer reaches the known best score of five tiny environments; `rlhf probe` shows it.

Which environments they are stands in `envs.tasks.probes`; how a stage trains is not this room's matter.
"""
