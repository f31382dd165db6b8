"""What every test starts from."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from rlhf.cpu import native, native_attention, native_blocks, native_decoding, native_kernels


