"""SFT, reward model and PPO for language models, from one configuration file."""
