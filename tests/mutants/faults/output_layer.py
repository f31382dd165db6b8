"""Faults in the compiled softmax of the output layer."""

from ..fault import Fault

FAULTS = (
    Fault(
        "lost-powers-are-large",
        "vectors.h.exponential",
        "return lost ? Vector{} :",
        "return",
        "a banned token has a probability",
        ("test_softmax_of_a_tile",),
    ),
    Fault(
        "compiled-softmax-without-temperature",
        "output_layer.tile_softmax",
        "1 / temperature",
        "1.0",
        "the ratio is that of another policy than the one that sampled",
        ("test_softmax_of_a_tile",),
    ),
    Fault(
        "peak-of-the-first-chunk",
        "output_layer.tile_softmax",
        "peaks = chunks.amax(0)",
        "peaks = chunks[0]",
        "a larger logit elsewhere is infinite",
        ("test_softmax_of_a_tile",),
    ),
    Fault(
        "compiled-banned-tile-not-a-number",
        "output_layer.tile_softmax",
        ".clamp_(min=torch.finfo(torch.float32).min)",
        "",
        "-inf - -inf is not a number",
        ("test_softmax_of_a_tile",),
    ),
    Fault(
        "sums-of-the-first-chunk",
        "output_layer.tile_softmax",
        "return peaks, chunks.sum(0)",
        "return peaks, chunks[0]",
        "all but 64 tokens of a tile have no probability",
        ("test_softmax_of_a_tile",),
    ),
    Fault(
        "compiled-gaps-ignored",
        "output_layer._is_even",
        " and x.is_contiguous()",
        "",
        "a transposed matrix is read as it lies",
        ("test_what_the_code_cannot_run_is_refused",),
    ),
    Fault(
        "compiled-rows-of-any-length",
        "output_layer._is_even",
        " and x.shape[-1] % _EVEN == 0",
        "",
        "the last numbers of a row are the next row's",
        ("test_what_the_code_cannot_run_is_refused",),
    ),
    Fault(
        "float64-read-as-float32",
        "output_layer._is_even",
        "x.dtype in dtypes and ",
        "",
        "numbers are read in halves",
        ("test_what_the_code_cannot_run_is_refused",),
    ),
    Fault(
        "exponentials-in-any-precision",
        "output_layer.tile_softmax",
        "kept == torch.float32 or (kept == torch.bfloat16 and multiplies_bfloat16())",
        "True",
        "exponentials are written where there is half the room for them",
        ("test_bfloat16_is_refused_where_the_processor_does_not_multiply_it",),
    ),
)
