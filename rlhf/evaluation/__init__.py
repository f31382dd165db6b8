"""Evaluation: two policies, before and after, on the same prompts with the same random numbers; paired intervals.

What is asked (`held_out`), how likely answers are (`likelihood`), how the two compare (`compare`, `paired`,
`bootstrap`), and the answers side by side (`responses`). It does not know which stages made the policies.
"""
