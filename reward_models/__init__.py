"""What says how good a response is: reward functions, trained reward models, and how their values are combined.

Text goes in, numbers come out. The lowest package: it knows no policy and no configuration, and imports neither `envs`
nor `rlhf`. What other packages share of the user's own code and mistakes (`loading`, `suggest`, `errors`) is here too.
"""
