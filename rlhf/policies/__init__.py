"""Policies and critics: what training, scoring and evaluation ask of a model.

`policy` is the protocol (states, log-probabilities), `decoder_only` answers it for causal language models, `head` and
`logprobs` are its two halves, `actor_critic` joins policy and critic, `critics` makes, saves and loads critics,
`backend` is the door to compiled code. Models are not loaded here, and nothing is learnt.
"""
