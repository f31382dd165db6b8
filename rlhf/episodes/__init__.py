"""Episodes: what was said token by token, in text environments, and what it earned.

Between generation and the algorithms that learn from episodes or compare them. An episode knows no tensors, and nothing
here trains or loads models.
"""
