"""Sequence packing: conversations of unequal length, laid end to end, and cut into microbatches by their tokens.

Tensors of indices and nothing else: what a token means, and which model reads it, is not known here.
"""
