"""Models and tokenizers: finding, building, loading, adapting and saving them.

`source.py` says where weights lie, `scratch.py` builds what has none, `load.py` is what the stages call, `adapters.py`
is LoRA. Nothing is imported here, so that the command line does not pay for torch.
"""
