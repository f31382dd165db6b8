"""Whole customer-service and dialogue tasks, registered by `envs.registry`."""
