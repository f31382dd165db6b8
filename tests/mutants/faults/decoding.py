"""Faults in compiled decoding."""

from ..fault import Fault

_STEP = ("native_decoding::test_a_step_is_that_of_float64",)
_LAYER = ("native_decoding::test_a_layer_is_applied_to_rows",)
_NOT_BLOCKS = ("native_decoding::test_blocks_that_the_code_cannot_run_are_left_to_torch",)
_NOT_LAYERS = ("native_decoding::test_a_layer_that_the_code_cannot_apply_is_left_to_torch",)

FAULTS = (
    Fault(
        "first-columns-for-all", "models/decoding.cpp",
        "k, x + c * PAIRED<T>, n, sums);", "k, x, n, sums);",
        "rows from the 17th on say what the first ones say", _LAYER,
    ),
    Fault(
        "turned-the-other-way", "models/decoding.cpp",
        "head[i] = first * cos[i] - second * sin[i];", "head[i] = first * cos[i] + second * sin[i];",
        "tokens are told apart by wrong places", _STEP,
    ),
    Fault(
        "itself-unseen", "models/decoding.cpp",
        "attend(query, keys, values, newest + 1,", "attend(query, keys, values, newest,",
        "a token does not attend to itself", _STEP,
    ),
    Fault(
        "decoding-scores-unscaled", "models/decoding.cpp",
        "const float scale = 1 / std::sqrt(float(size));", "const float scale = 1;",
        "attention is too sharp", _STEP,
    ),
    Fault(
        "padding-counts", "models/decoding.cpp",
        "weights[j] = -INFINITY;", "weights[j] = peak;",
        "places behind a row's last token take a share of its attention", _STEP,
    ),
    Fault(
        "first-keys-for-all", "models/decoding.cpp",
        "for (int64_t head = shared * group; head < (shared + 1) * group; head++)",
        "for (int64_t head = shared; head < s.heads; head += s.shared)",
        "heads attend to the keys of another group", _STEP,
    ),
    Fault(
        "attention-biases-forgotten", "models/decoding.cpp",
        "(b.bias ? b.bias[r + i] : 0)", "0",
        "Qwen2's queries, keys and values lack their biases", _STEP,
    ),
    Fault(
        "first-norm-twice", "models/decoding.cpp",
        "rms_norm<T>(s, b.second_norm, b.second_epsilon);", "rms_norm<T>(s, b.norm, b.second_epsilon);",
        "the feed-forward layer reads what attention's norm makes", _STEP,
    ),
    Fault(
        "gate-and-up-exchanged", "models/decoding.cpp",
        "gates[u][i] *= ups[u][i] / (1.0f + exponential(-gates[u][i]));",
        "gates[u][i] *= ups[u][i] / (1.0f + exponential(-ups[u][i]));",
        "the gate is the wrong one", _STEP,
    ),
    Fault(
        "residual-lost", "models/decoding.cpp",
        "*(Vector*)(s.x + (r + i) * s.n + c + u * W) += sums[u][i];",
        "*(Vector*)(s.x + (r + i) * s.n + c + u * W) = sums[u][i];",
        "a block forgets what came in", _STEP,
    ),
    Fault(
        "bias-forgotten", "models/native_decoding.py",
        "return out if layer.bias is None else out.add_(layer.bias)", "return out",
        "the sampler's logits lack their bias", _LAYER,
    ),
    Fault(
        "gradients-owed", "models/native_decoding.py",
        " and torch.is_inference_mode_enabled()", "",
        "a product that training needs has no gradient", _NOT_LAYERS,
    ),
    Fault(
        "gaps-ignored", "models/native_decoding.py",
        "        or not weight.is_contiguous()\n", "",
        "a transposed matrix is read as it lies", _NOT_LAYERS,
    ),
    Fault(
        "adapters-ignored", "models/native_decoding.py",
        "by.bias is None and by.down is None", "by.bias is None",
        "the sampler decodes without the policy's adapter", _NOT_BLOCKS,
    ),
    Fault(
        "biases-ignored", "models/native_decoding.py",
        "by.bias is None and by.down is None", "by.down is None",
        "layers lack their biases in decoding", _NOT_BLOCKS,
    ),
    Fault(
        "small-heads-misread", "models/native_decoding.py",
        "heads.size % _COLUMNS == 0 and ", "",
        "heads of 8 are read with half of the next one", _NOT_BLOCKS,
    ),
)  # fmt: skip
