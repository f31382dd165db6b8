"""Every fault: in the mathematics, in episodes, in sampling, in the trainer's parts and in its loop."""

from ..fault import Fault
from . import blocks, episodes, learning, mathematics, sampling, updates

FAULTS: tuple[Fault, ...] = (
    *mathematics.FAULTS,
    *episodes.FAULTS,
    *sampling.FAULTS,
    *learning.FAULTS,
    *updates.FAULTS,
    *blocks.FAULTS,
)
