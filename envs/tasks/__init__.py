"""The tasks that come along, one file each: `registry` gives them their ids. What all tasks share is `envs.base`."""
