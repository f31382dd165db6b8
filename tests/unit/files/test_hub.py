"""Which commit a data set's name stands for: by the Hub, by the local cache, or unknown."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RevisionNotFoundError

import rlhf.files.hub
from rlhf.errors import DataError
from rlhf.files.hub import dataset_commit, hub_reachable

HERE, THERE = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache, and a Hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(rlhf.files.hub, "hub_reachable", lambda: False)
    return tmp_path


def answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[str, str | None]]:
    """The Hub answers with a commit, or raises; returns what it was asked."""
    asked: list[tuple[str, str | None]] = []

    def dataset_info(self: Any, name: str, *, revision: str | None, timeout: float) -> Any:
        asked.append((name, revision))
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(sha=answer)

    monkeypatch.setattr(rlhf.files.hub, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    return asked


def downloaded(cache: Path, revision: str = "main") -> None:
    references = cache / "hub" / "datasets--owner--name" / "refs"
    references.mkdir(parents=True)
    (references / revision).write_text(HERE)


def test_the_hub_is_asked_for_the_revision(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded(cache)
    asked = answers(monkeypatch, THERE)
    assert dataset_commit("owner/name") == dataset_commit("owner/name", "v2") == THERE
    assert asked == [("owner/name", None), ("owner/name", "v2")]


def test_a_commit_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, THERE)
    assert dataset_commit("owner/name", HERE) == HERE
    assert asked == []


@pytest.mark.parametrize("state", ["no network", "no answer", "offline by choice"])
def test_without_the_hub_the_local_cache_says_it(cache: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    downloaded(cache)
    if state == "no answer":
        answers(monkeypatch, TimeoutError("slow"))
    if state == "offline by choice":
        asked = answers(monkeypatch, THERE)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert dataset_commit("owner/name") == HERE
    assert dataset_commit("owner/name", "v2") is None  # of this branch the cache knows nothing
    assert state != "offline by choice" or asked == []


def test_prepared_data_of_an_unknown_commit_are_no_mistake(cache: Path) -> None:
    (cache / "datasets" / "owner___name").mkdir(parents=True)
    assert dataset_commit("owner/name") is None


def test_what_is_nowhere_is_a_mistake_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"^owner/name: no such file here, .*cannot be reached, .*not in the local cache"
    ):
        dataset_commit("owner/name")
    answers(monkeypatch, RevisionNotFoundError("404", response=SimpleNamespace(headers={}, request=None)))
    with pytest.raises(DataError, match=r"^owner/name: .*no data set of this name and revision \(v9\).*Check the name"):
        dataset_commit("owner/name", "v9")


def test_the_hub_is_reachable_if_its_name_resolves_or_there_is_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    assert not hub_reachable()
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
    assert hub_reachable()
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    assert hub_reachable()
