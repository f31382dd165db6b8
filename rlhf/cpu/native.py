"""C++ that lies beside a module: whether to use it, compiling it, and loading it into the process."""

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rlhf.errors import ModelError

logger = logging.getLogger(__name__)
_compiling = False


def compile_kernels(enabled: bool | None) -> None:
    """Choose whether C++ is compiled where it is first needed, in seconds, and kept for later processes.

    Args:
        enabled: None: where there is a C++ compiler.

    Raises:
        ModelError: There is none, and it was asked for.
    """
    global _compiling
    if enabled and _compiler() is None:
        raise ModelError("compile_kernels needs a C++ compiler: install g++ (or name one in CXX), or set it to false")
    _compiling = _compiler() is not None if enabled is None else enabled


def compiling() -> bool:
    """Whether C++ is compiled."""
    return _compiling


def computes(load: Callable[[], Any], dtype: torch.dtype) -> bool:
    """Whether C++ is compiled, and a library that includes vectors.h has fast products in a precision.

    Args:
        load: Returns the library, or None; not called for precisions that none of them has.
        dtype: The precision.
    """
    if not _compiling or dtype not in (torch.float32, torch.bfloat16):
        return False
    library = load()
    return library is not None and (dtype == torch.float32 or bool(library.multiplies_bfloat16()))


def capabilities() -> Mapping[str, Any]:
    """What this processor can do, as torch says; nothing, if it is too old a torch to say."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


def _compiler() -> str | None:
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return next((found for name in names if (found := shutil.which(name))), None)


def library(source: Path, *options: str, links: Sequence[str] = (), otherwise: str) -> ctypes.CDLL | None:
    """Compile a file for this processor, unless that has been done before, and load it.

    Args:
        source: The file.
        options: Of the compiler, besides the usual ones. With OpenMP nothing is to be linked: its functions come from
            the library that torch has loaded, and its threads too.
        links: Options of the linker: the libraries that it needs, besides those that torch shows to everybody.
        otherwise: What happens without the library, for the warning.

    Returns:
        None, behind a warning, if it cannot be compiled or loaded.
    """
    compiler = str(_compiler())
    command = [compiler, "-O3", "-march=native", "-std=c++20", "-fPIC", *options]
    try:
        made = _folder() / f"{source.stem}-{_fingerprint(source, [*command, *links])}.so"
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=made.parent) as folder:
                compiled, linked = Path(folder) / f"{source.stem}.o", Path(folder) / made.name
                _run(*command, "-c", source, "-o", compiled)
                _run(compiler, "-shared", compiled, "-o", linked, *links)
                linked.replace(made)  # at once: other processes see all of it or nothing
        return ctypes.CDLL(str(made))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("%s, because %s does not compile: %s", otherwise, source.name, reason)
        return None


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _fingerprint(source: Path, command: Sequence[str]) -> str:
    """Tell apart what may not be exchanged: sources, commands, compilers, torch's versions, processors."""
    texts = [file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.h")))]
    facts = [*texts, *command, _run(command[0], "--version"), torch.__version__, _processor()]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    telling = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return " ".join([platform.machine(), platform.processor(), *telling])


def _folder() -> Path:
    """Where compiled files are kept: in the user's cache, or if nothing can be kept there, as long as this process."""
    try:
        cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf"
        cached.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none to write to
        return _temporary_folder()
    return cached if os.access(cached, os.W_OK) else _temporary_folder()


@cache
def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="rlhf-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
