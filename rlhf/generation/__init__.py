"""From requests to samples: the sampler, its cache and noise. What an episode is, it does not know."""
