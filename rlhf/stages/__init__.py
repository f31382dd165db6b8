"""The stages of a run: sft, reward, ppo and evaluate, a module each with one `run` that reads as the algorithm.

A stage reads the folders of earlier ones and writes its own. In which order they run, and whether they have to, is not
their matter.
"""
