"""C++ that lies beside a module: compiling it once for this machine, and loading it into the process.

What is compiled is kept in the user's cache for later processes. What the functions mean is known to the modules that
call this one; nothing is compiled or loaded by importing them.
"""

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

logger = logging.getLogger(__name__)


def found() -> str | None:
    """Return the path of a C++ compiler, that of CXX before others, or None."""
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return next((path for name in names if (path := shutil.which(name))), None)


def library(source: Path, *options: str) -> ctypes.CDLL | None:
    """Compile a file for this processor, unless that has been done before, and load it.

    Args:
        source: The file.
        options: Of the compiler, besides the usual ones. With OpenMP nothing is to be linked: its functions come from
            the library that torch has loaded, and its threads too.

    Returns:
        None, behind a warning, if it cannot be compiled or loaded.
    """
    compiler = str(found())
    command = [compiler, "-O3", "-march=native", "-std=c++20", "-fPIC", *options]
    try:
        name = f"{source.stem}-{_fingerprint(source, command)}.so"
        made = _folder() / name
        if made.exists() and not _is_ours(made):
            logger.warning("%s is not loaded: others may write to it. It is compiled again for this process", made)
            made = _temporary_folder() / name
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=made.parent) as folder:
                compiled, linked = Path(folder) / f"{source.stem}.o", Path(folder) / made.name
                _run(*command, "-c", source, "-o", compiled)
                _run(compiler, "-shared", compiled, "-o", linked)
                linked.chmod(0o755)
                linked.replace(made)  # at once: other processes see all of it or nothing
        return ctypes.CDLL(str(made))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("%s does not compile: %s", source.name, reason)
        return None


def _is_ours(made: Path) -> bool:
    """Whether nobody else could have written what is about to be run."""
    status = made.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


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
