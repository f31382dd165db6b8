"""Planning: what a configuration will do, worked out before anything is loaded.

`arithmetic` counts prompts, minibatches and optimizer steps, `explain` prints them with their reasons. Nothing runs.
"""
