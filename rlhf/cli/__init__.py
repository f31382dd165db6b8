"""The command line: one file for each family of commands. Each parses, loads the configuration, calls one function.

No logic stands here, and nothing heavy is imported before a command needs it: help and messages come at once.
"""
