"""The study: the whole pipeline for several seeds, and a judge that no policy was trained on.

`study` runs it, `judge` scores finished evaluations, `numbers` and `table` sum up. All training goes through the
pipeline: this is no second trainer.
"""
