"""Every fault: in the mathematics, in episodes, in sampling, in the trainer's parts, in its loop and its kernels."""

from ..fault import Fault
from . import blocks, decoding, episodes, learning, mathematics, sampling, updates

FAULTS: tuple[Fault, ...] = (
    *mathematics.FAULTS,
    *episodes.FAULTS,
    *sampling.FAULTS,
    *learning.FAULTS,
    *updates.FAULTS,
    *blocks.FAULTS,
    *decoding.FAULTS,
)
