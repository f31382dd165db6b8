"""Launch: the processes of a run, DeepSpeed, and the `Runtime` that says where a process computes.

The only place that imports deepspeed, asks for devices or starts processes. What is trained in them is not its matter.
"""
