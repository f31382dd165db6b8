"""A compiled backend for common decoders on CPUs: trunk, attention, decoding and the output layer's softmax, in C++.

It makes training and sampling faster, with the same numbers up to rounding, and is never needed: `policies.backend` is
the only door to it, and with this folder deleted everything runs in plain torch. Importing it registers and changes
nothing; code is compiled when the first model asks for its backend. It does not load models, know configs, or decide
where it is used. Llama, Mistral and Qwen2 are served, with all weights or LoRA, in float32, and in bfloat16 where the
processor has AVX-512 BF16.
"""
