"""The stages of a run, one module each with one `run` function."""
