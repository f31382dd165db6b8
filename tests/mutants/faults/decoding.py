"""Faults in the products that decoding is made of."""

from ..fault import Fault

_PRODUCTS = ("narrow::test_products_are_those_of_float64",)
_REFUSED = ("narrow::test_what_the_kernel_cannot_do_is_left_to_torch",)

FAULTS = (
    Fault(
        "second-eight-columns-are-the-first", "models/narrow.cpp",
        "sums[r][c / 8][c % 8]", "sums[r][0][c % 8]",
        "rows 9 to 16 of a step say what rows 1 to 8 say", _PRODUCTS,
    ),
    Fault(
        "last-eight-columns-are-the-first", "models/narrow.cpp",
        "tile<R, 1>(matrix, x + c,", "tile<R, 1>(matrix, x,",
        "rows behind a multiple of 16 say what the first rows say", _PRODUCTS,
    ),
    Fault(
        "layout-ignored", "models/narrow.py",
        "if missing else x.contiguous()", "if missing else x",
        "what attention found is read in another order", _PRODUCTS,
    ),
    Fault(
        "bias-forgotten", "models/narrow.py",
        "return out if layer.bias is None else out.add_(layer.bias)", "return out",
        "the sampler's logits lack their bias", ("narrow::test_a_layer_is_applied_to_rows",),
    ),
    Fault(
        "gradients-owed", "models/narrow.py",
        "        and torch.is_inference_mode_enabled()\n", "",
        "a product that training needs has no gradient", _REFUSED,
    ),
    Fault(
        "gaps-ignored", "models/narrow.py",
        "        and matrix.is_contiguous()\n", "",
        "a transposed matrix is read as it lies", _REFUSED,
    ),
)  # fmt: skip
