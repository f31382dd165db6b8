"""Every fault: in the mathematics, in episodes, in sampling, in the trainer's parts, the loop, kernels and memory."""

from ..fault import Fault
from . import blocks, compiled, compiled_blocks, decoding, episodes, learning, mathematics, memory, sampling, updates

FAULTS: tuple[Fault, ...] = (
    *mathematics.FAULTS,
    *episodes.FAULTS,
    *sampling.FAULTS,
    *learning.FAULTS,
    *updates.FAULTS,
    *blocks.FAULTS,
    *compiled.FAULTS,
    *compiled_blocks.FAULTS,
    *decoding.FAULTS,
    *memory.FAULTS,
)
