"""Generation: requests go in, samples with their log-probabilities come out.

`generator` says what an engine is, `torch_generator` is the one that needs nothing else: `sampler` decodes, `cache`
holds keys and values, `noise` names random numbers, `rollout_policy` keeps weights that are fit for decoding. What an
episode is, and what responses earn, is not known here.
"""
