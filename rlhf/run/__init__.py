"""What has to run, and running it: the stages in order, what their results depend on, the manifest that remembers it.

No training happens here, and what a run folder looks like is `rlhf.files.run_folder`'s matter.
"""
