"""Text-generation environments for Gymnasium. May import `reward_models`, never `rlhf`."""
