"""Faults in compiled blocks and their products, and in what decides where they are used."""

from ..fault import Fault

_BLOCKS = ("native_blocks::test_values_and_gradients_are_those_of_float64",)
_NOT_BLOCKS = ("native_blocks::test_what_the_code_cannot_run_is_left_to_torch",)

FAULTS = (
    Fault(
        "compiled-block-without-residual",
        "models/blocks.cpp",
        "vector_of(x + row * D + c) + sums;",
        "sums;",
        "what lower blocks said is forgotten",
        _BLOCKS,
    ),
    Fault(
        "compiled-block-keeps-another-chunks-norms",
        "models/blocks.cpp",
        "of_chunk((T*)call.normed, D));",
        "(T*)call.normed);",
        "weights learn from the inputs of the last tokens",
        _BLOCKS,
    ),
    Fault(
        "compiled-gates-taken-for-ups",
        "models/blocks.cpp",
        "kept.store(at, I + c, of[r].up, of[r + 1].up);",
        "kept.store(at, I + c, of[r].gate, of[r + 1].gate);",
        "the matrix of ups learns what is said of gates",
        _BLOCKS,
    ),
    Fault(
        "compiled-rows-that-are-none-are-counted",
        "models/blocks.cpp",
        "if (row + r < n) of[r]",
        "of[r]",
        "what lies behind the last token trains the weights",
        _BLOCKS,
    ),
    Fault(
        "compiled-gradient-of-the-last-tokens",
        "models/products.h",
        "        if (first)\n",
        "        if (false)\n",
        "weights learn from the last 256 tokens at most",
        _BLOCKS,
    ),
    Fault(
        "compiled-strips-all-as-wide",
        "models/products.h",
        "return std::min(STRIP, columns - c / STRIP * STRIP);",
        "return STRIP;",
        "the last columns of a matrix are read where they are not",
        _BLOCKS,
    ),
    Fault(
        "compiled-keys-in-place-of-queries",
        "models/blocks.cpp",
        "      before += rows;\n",
        "",
        "queries, keys and values are laid over each other",
        _BLOCKS,
    ),
    Fault(
        "compiled-block-without-residual-gradient",
        "models/blocks.cpp",
        "norm_backward(of_chunk(call.middle, D), of_chunk((const float*)call.grad, D));",
        "norm_backward(of_chunk(call.middle, D), nullptr);",
        "lower blocks learn through the feed-forward layers alone",
        _BLOCKS,
    ),
    Fault(
        "a-norm-learns-from-one-chunk",
        "models/native_blocks.py",
        "return x_grad, attended_grad, None, None, norm_grad.sum(0),",
        "return x_grad, attended_grad, None, None, norm_grad[0],",
        "the weight of a norm learns from 32 tokens",
        _BLOCKS,
    ),
    Fault(
        "biases-left-out",
        "models/native_blocks.py",
        "by.bias is not None or ",
        "",
        "a Qwen2 loses the biases of its heads",
        _NOT_BLOCKS,
    ),
    Fault(
        "adapters-left-out",
        "models/native_blocks.py",
        " or by.down is not None",
        "",
        "an adapter neither says nor learns anything",
        _NOT_BLOCKS,
    ),
    Fault(
        "transposed-weights-read-as-they-lie",
        "models/native_blocks.py",
        " or not x.is_contiguous()",
        "",
        "a transposed matrix is read as it lies",
        _NOT_BLOCKS,
    ),
    Fault(
        "compiled-blocks-where-onednn-is-faster",
        "models/native_blocks.py",
        ' and not (dtype == torch.bfloat16 and known.get("amx_bf16"))',
        "",
        "training takes twice as long on a processor with AMX",
        ("native_blocks::test_it_is_used_where_nothing_is_faster",),
    ),
)
