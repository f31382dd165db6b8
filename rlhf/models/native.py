"""C++ that lies beside a module: whether to use it, compiling it, and loading it into the process."""

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import ModelError

logger = logging.getLogger(__name__)
_compiling = False


def compile_kernels(enabled: bool) -> None:
    """Choose whether C++ is compiled where it is first needed, which takes a second or two for each file.

    Raises:
        ModelError: If there is no C++ compiler.
    """
    global _compiling
    if enabled:
        _compiler()
    _compiling = enabled


def compiling() -> bool:
    """Whether C++ is compiled."""
    return _compiling


def _compiler() -> str:
    for name in (os.environ.get("CXX", "c++"), "g++", "clang++"):
        if found := shutil.which(name):
            return found
    raise ModelError("compile_kernels needs a C++ compiler: install g++ (or name one in CXX), or set it to false")


def library(source: Path, *options: str, links: Sequence[str] = (), otherwise: str) -> ctypes.CDLL | None:
    """Compile a file for this processor and load it; None, and a warning, if that cannot be done.

    Args:
        source: The file.
        options: Of the compiler, besides the usual ones. With OpenMP nothing is to be linked: its functions come from
            the library that torch has loaded, and its threads too.
        links: Options of the linker: the libraries that it needs, besides those that torch shows to everybody.
        otherwise: What happens without the library, for the warning.

    Raises:
        ModelError: There is no C++ compiler.
    """
    compiler = _compiler()
    with tempfile.TemporaryDirectory() as folder:
        compiled, linked = Path(folder) / f"{source.stem}.o", Path(folder) / f"{source.stem}.so"
        try:
            _run(compiler, "-O3", "-march=native", "-std=c++20", "-fPIC", *options, "-c", source, "-o", compiled)
            _run(compiler, "-shared", compiled, "-o", linked, *links)
            return ctypes.CDLL(str(linked))
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            logger.warning("%s, because %s does not compile: %s", otherwise, source.name, reason)
            return None


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
