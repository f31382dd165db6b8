"""Faults in compiled attention."""

from ..fault import Fault

FAULTS = (
    Fault(
        "compiled-attention-looks-ahead",
        "attention.cpp.attend",
        "powers(&scores[r * l], columns, first + r, peak);",
        "powers(&scores[r * l], columns, first + r + 1, peak);",
        "a token sees the one that it predicts",
        ("attention",),
    ),
    Fault(
        "compiled-scores-unscaled",
        "attention.cpp.Worker",
        "scale(1 / std::sqrt(float(call.size)))",
        "scale(1)",
        "attention is too sharp",
        ("attention",),
    ),
    Fault(
        "compiled-softmax-gradient-without-its-sum",
        "attention.cpp.attend_backward",
        "(vector_of(g + c) - mean) * scale",
        "vector_of(g + c) * scale",
        "attention weights are learnt as if they did not sum to 1",
        ("attention",),
    ),
    Fault(
        "compiled-gradients-turned-twice",
        "attention.cpp.attend_backward",
        "rotate(call, tokens[first + r], -1, &numbers[r * d]);",
        "rotate(call, tokens[first + r], 1, &numbers[r * d]);",
        "queries learn for other positions",
        ("attention",),
    ),
    Fault(
        "compiled-keys-learn-in-their-places",
        "attention.cpp.backward",
        "      rotate(call, tokens[i], -1, &key_sums[i * d]);\n",
        "",
        "keys learn what is said of turned ones",
        ("attention",),
    ),
    Fault(
        "compiled-shared-queries-learn-once-a-row",
        "attention.cpp.attend_backward",
        "if (own(first + r)) {  //",
        "if (first + r < length) {  //",
        "what one token says has an effect for each row that begins with it",
        ("attention",),
    ),
    Fault(
        "compiled-shared-tokens-learn-from-one-row",
        "attention.cpp.gather",
        "i < call.repeats; i++)",
        "i < 0; i++)",
        "what rows have in common is trained by the first of them alone",
        ("attention",),
    ),
    Fault(
        "shared-values-learn-from-one-row",
        "attention.cpp.gather",
        "for (float* grad : {call.key_grad + c, call.value_grad + c})",
        "for (float* grad : {call.key_grad + c})",
        "keys learn from all rows, values from the first",
        ("attention",),
    ),
    Fault(
        "keys-turned-back-by-others-angles",
        "attention.cpp.backward",
        "rotate(call, tokens[i], -1, &key_sums[i * d]);",
        "rotate(call, i, -1, &key_sums[i * d]);",
        "gradients of keys are turned to other positions",
        ("attention",),
    ),
    Fault(
        "compiled-keys-of-another-group",
        "attention.cpp.forward",
        "for (int64_t head = shared * group; head < (shared + 1) * group; head++) {\n"
        "      take(call.heads, call.all(), head, true, query);\n"
        "      for",
        "for (int64_t head = shared; head < call.queries; head += call.keys) {\n"
        "      take(call.heads, call.all(), head, true, query);\n"
        "      for",
        "heads attend to the keys of others",
        ("attention",),
    ),
    Fault(
        "compiled-values-learn-from-late-queries-alone",
        "attention.cpp.add_products",
        "const int64_t from = std::max(first, begin / Q * Q)",
        "const int64_t from = std::max(first + Q, begin / Q * Q)",
        "keys and values learn nothing from the queries next to them",
        ("attention",),
    ),
    Fault(
        "heads-learn-from-the-last-of-their-group",
        "attention.cpp.add_products",
        "c + i * W] += sums[i][r];",
        "c + i * W] = sums[i][r];",
        "keys and values that several heads share learn from one of them",
        ("attention",),
    ),
    Fault(
        "rows-behind-others-turned-like-these",
        "attention.cpp.take",
        "rotate(call, tokens[i], 1, &numbers[i * d])",
        "rotate(call, i, 1, &numbers[i * d])",
        "the second row's places go on where the first one's ended",
        ("attention",),
    ),
    Fault(
        "exponential-of-other-powers-of-two",
        "vectors.h.exponential",
        "n * 2.12194440e-4f",
        "n * 2.12194440e-3f",
        "softmax and gates are off by a few digits",
        ("attention",),
    ),
)
