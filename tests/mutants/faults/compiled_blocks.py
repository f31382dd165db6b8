"""Faults in compiled blocks and their products, and in what decides where they are used."""

from ..fault import Fault

FAULTS = (
    Fault(
        "compiled-block-keeps-another-chunks-norms",
        "blocks.cpp.norm",
        "of_chunk((T*)call.normed, D));",
        "(T*)call.normed);",
        "weights learn from the inputs of the last tokens",
        ("test_values_and_gradients_are_those_of_float64",),
    ),
    Fault(
        "compiled-strips-all-as-wide",
        "products.h.width",
        "return std::min(STRIP, columns - c / STRIP * STRIP);",
        "return STRIP;",
        "the last columns of a matrix are read where they are not",
        ("test_values_and_gradients_are_those_of_float64",),
    ),
)
