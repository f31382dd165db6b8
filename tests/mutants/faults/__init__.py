"""Every fault: in the mathematics, in episodes and sampling, in the loop, and in compiled code."""

from ..fault import Fault
from . import (
    attention,
    backend,
    blocks,
    compiler,
    decoding,
    episodes,
    learning,
    logprobs,
    mathematics,
    output_layer,
    packing,
    products,
    roles,
    sampling,
    trunk,
    updates,
)

FAULTS: tuple[Fault, ...] = (
    *mathematics.FAULTS,
    *episodes.FAULTS,
    *sampling.FAULTS,
    *learning.FAULTS,
    *roles.FAULTS,
    *logprobs.FAULTS,
    *updates.FAULTS,
    *packing.FAULTS,
    *backend.FAULTS,
    *compiler.FAULTS,
    *trunk.FAULTS,
    *attention.FAULTS,
    *blocks.FAULTS,
    *products.FAULTS,
    *output_layer.FAULTS,
    *decoding.FAULTS,
)
