"""Faults in the memory of large tensors."""

from ..fault import Fault

_JOINED = ("freed_memory::test_what_is_freed_is_joined",)
_OWN = ("freed_memory::test_every_tensor_has_its_memory_to_itself_and_is_aligned",)

FAULTS = (
    Fault(
        "memory-given-twice", "models/freed_memory.cpp",
        "    gaps_.erase(gap);\n", "",
        "two tensors get the same memory", _OWN,
    ),
    Fault(
        "memory-anywhere", "models/freed_memory.cpp",
        "(size + kAlignment - 1) / kAlignment * kAlignment", "size",
        "tensors begin at odd addresses", _OWN,
    ),
    Fault(
        "gap-behind-not-joined", "models/freed_memory.cpp",
        "if (next != blocks_.end() && gaps_.erase", "if (false && gaps_.erase",
        "memory is cut up until nothing large fits", _JOINED,
    ),
    Fault(
        "gap-before-not-joined", "models/freed_memory.cpp",
        "if (block != blocks_.begin())", "if (false)",
        "memory is cut up until nothing large fits", _JOINED,
    ),
    Fault(
        "largest-gap-taken", "models/freed_memory.cpp",
        "gaps_.lower_bound({size, nullptr})", "std::prev(gaps_.end())",
        "every tensor gets fresh memory as long as there is some", _JOINED,
    ),
)  # fmt: skip
