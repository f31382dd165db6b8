"""Scoring: the configured components of the reward, loaded and ready to be called.

`scorer` finds and loads them, `shared_reward` puts the run's own reward model on the policy's trunk. How values are
combined is the matter of `reward_models`, and nothing is trained here.
"""
