"""What every test starts from."""

from collections.abc import Iterator

import pytest

from rlhf.models import native


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Trainers of earlier tests do not decide how the next one computes."""
    yield
    native.compile_kernels(False)
