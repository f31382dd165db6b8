"""The configuration: its schema, and reading it from YAML and the command line, strictly.

Nothing that it names is opened here, and nothing changes it after loading: stages and loop read its sections as they
are.
"""
