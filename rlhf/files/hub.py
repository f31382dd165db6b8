"""What can be asked of the Hugging Face Hub without loading from it: is it there, which commit is a name?"""

import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from rlhf.errors import DataError

__all__ = ["dataset_commit", "hub_reachable"]

_ANSWER_SECONDS = 10.0


def hub_reachable() -> bool:
    """Whether the Hub can be asked: its name resolves, or a proxy is set. Asking in vain takes half a minute a file."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def dataset_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a data set's branch or tag stands for: the Hub's answer, else the one in the local cache.

    Args:
        name: Hub id, `owner/name`.
        revision: Branch, tag or commit; None means `main`.

    Returns:
        40 hexadecimal digits; None if the data set is in the local cache, but not its commit.

    Raises:
        DataError: The Hub has no such data set or revision, or it can be had neither from the Hub nor from the cache.
    """
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    failure = "the Hub cannot be reached"
    if not constants.HF_HUB_OFFLINE and hub_reachable():
        try:
            return HfApi().dataset_info(name, revision=revision, timeout=_ANSWER_SECONDS).sha
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise DataError(
                f"{name}: no such file here, and the Hub has no data set of this name and revision "
                f"({revision or 'main'}) for you: {error}. Check the name; log in if it is private."
            ) from error
        except Exception as error:  # of the network, in many kinds
            failure = f"the Hub does not answer ({type(error).__name__})"
    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    reference = downloaded / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    if not downloaded.is_dir() and not (prepared / name.replace("/", "___")).is_dir():
        raise DataError(
            f"{name}: no such file here, and as a data set of the Hub it cannot be loaded: {failure}, and it is not in "
            "the local cache. Check the name; without a network, give a file."
        )
    return None
