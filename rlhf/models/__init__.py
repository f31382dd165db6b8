"""Models: from a name to a module. Hub id, folder, GGUF file or random weights; tokenizers; adapters.

`source` says where weights lie, `scratch` builds what has none, `load` is what the stages call, `adapters` and
`shared_trunk` put LoRA on them. Nothing is trained here.
"""
