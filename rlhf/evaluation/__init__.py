"""Two policies side by side on held-out prompts: answers, likelihoods, text statistics, paired intervals.

`rlhf.stages.evaluate` calls these in order; `rlhf.study` repeats them over seeds.
"""
