"""Did you mean: near names, and paths that almost exist."""

from pathlib import Path

import pytest

from reward_models.suggest import closest, did_you_mean, paths_like


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("epoch", ["epochs", "seed"], ["epochs"]),
        ("Learning-Rate", ["learning_rate"], ["learning_rate"]),
        ("learning_rat", ["Learning-Rate"], ["Learning-Rate"]),
        ("zzz", ["epochs", "seed"], []),
        ("a", [], []),
        (30, ["300", "seed"], ["300"]),
    ],
)
def test_the_nearest_name_is_found_whatever_its_case_and_dashes(name: object, known: list[str], expected) -> None:
    assert closest(name, known) == expected


def test_several_are_given_best_first() -> None:
    assert closest("train", ["trains", "brain", "trainer", "test"], most=2) == ["trains", "trainer"]
    assert did_you_mean("train", ["trains", "trainer"], most=2) == "did you mean trains, trainer?"
    assert did_you_mean("zzz", ["train"]) == ""


def test_the_part_of_a_path_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").touch()
    data = tmp_path / "data"
    assert paths_like(data / "trian.jsonl") == (data, "trian.jsonl", [data / "train.jsonl"])
    assert paths_like(tmp_path / "dta" / "train.jsonl") == (tmp_path, "dta", [data])
    assert paths_like(data / "zzz.csv") == (data, "zzz.csv", [])
