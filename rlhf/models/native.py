"""Compiling a file of C++ that lies beside a module, and loading it into the process."""

import ctypes
import logging
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rlhf.models import kernels

logger = logging.getLogger(__name__)


def library(source: Path, *options: str, links: Sequence[str] = (), otherwise: str) -> ctypes.CDLL | None:
    """Compile a file for this processor and load it; None, and a warning, if that cannot be done.

    Args:
        source: The file.
        options: Of the compiler, besides the usual ones.
        links: Options of the linker: the libraries that it needs, besides those that torch shows to everybody.
        otherwise: What happens without the library, for the warning.

    Raises:
        ModelError: There is no C++ compiler.
    """
    compiler = kernels.compiler()
    with tempfile.TemporaryDirectory() as folder:
        compiled, linked = Path(folder) / f"{source.stem}.o", Path(folder) / f"{source.stem}.so"
        try:
            _run(compiler, "-O3", "-march=native", "-fPIC", *options, "-c", source, "-o", compiled)
            _run(compiler, "-shared", compiled, "-o", linked, *links)
            return ctypes.CDLL(str(linked))
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            logger.warning("%s, because %s does not compile: %s", otherwise, source.name, reason)
            return None


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
