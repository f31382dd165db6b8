"""Processes and what they compute on: starting and joining them, DeepSpeed, the `Runtime`. Not what is trained."""
