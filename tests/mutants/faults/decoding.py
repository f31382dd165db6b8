"""Faults in compiled decoding."""

from ..fault import Fault

FAULTS = (
    Fault(
        "turned-the-other-way",
        "decoding.cpp.rotate",
        "head[i] = first * cos[i] - second * sin[i];",
        "head[i] = first * cos[i] + second * sin[i];",
        "tokens are told apart by wrong places",
    ),
    Fault(
        "itself-unseen",
        "decoding.cpp.attention",
        "attend(query, keys, values, newest + 1,",
        "attend(query, keys, values, newest,",
        "a token does not attend to itself",
    ),
    Fault(
        "decoding-scores-unscaled",
        "decoding.cpp.attend",
        "const float scale = 1 / std::sqrt(float(size));",
        "const float scale = 1;",
        "attention is too sharp",
    ),
    Fault(
        "padding-counts",
        "decoding.cpp.attend",
        "weights[j] = -INFINITY;",
        "weights[j] = peak;",
        "places behind a row's last token take a share of its attention",
    ),
    Fault(
        "first-keys-for-all",
        "decoding.cpp.attention",
        "for (int64_t head = shared * group; head < (shared + 1) * group; head++)",
        "for (int64_t head = shared; head < s.heads; head += s.shared)",
        "heads attend to the keys of another group",
    ),
    Fault(
        "first-norm-twice",
        "decoding.cpp.block",
        "rms_norm<T>(s, b.second_norm, b.second_epsilon);",
        "rms_norm<T>(s, b.norm, b.second_epsilon);",
        "the feed-forward layer reads what attention's norm makes",
    ),
    Fault(
        "residual-lost",
        "decoding.cpp.block",
        "*(Vector*)(s.x + (r + i) * s.n + c + u * W) += sums[u][i];",
        "*(Vector*)(s.x + (r + i) * s.n + c + u * W) = sums[u][i];",
        "a block forgets what came in",
    ),
)
