"""Normalisation: moments, ranking, the file, and scores that cannot be normalised."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from reward_models.errors import RewardError
from reward_models.normalise import Normalisation


def test_scores_that_were_measured_get_mean_0_and_variance_1_and_keep_their_ranking() -> None:
    scores = np.random.default_rng(0).gamma(2.0, 3.0, size=500) - 40
    normal = Normalisation.fit(scores)
    applied = normal.apply(scores)
    assert applied.mean() == pytest.approx(0, abs=1e-10)
    assert applied.var() == pytest.approx(1, abs=1e-10)
    assert (np.argsort(applied) == np.argsort(scores)).all()
    assert normal.samples == 500


def test_values_by_hand() -> None:
    normal = Normalisation.fit([1.0, 3.0])
    assert (normal.mean, normal.std, normal.samples) == (2.0, 1.0, 2)
    np.testing.assert_allclose(normal.apply(np.array([2.0, 5.0, math.nan])), [0.0, 3.0, math.nan], atol=1e-12)


def test_default_changes_nothing() -> None:
    assert Normalisation().apply(np.array([1.5]))[0] == 1.5


def test_file_round_trip(tmp_path) -> None:
    normal = Normalisation(mean=-1.25, std=0.1 + 0.2, samples=64)
    path = normal.save(tmp_path)
    assert path == tmp_path / "normalisation.json"
    assert json.loads(path.read_text()) == {"mean": -1.25, "std": 0.1 + 0.2, "samples": 64}
    assert Normalisation.load(tmp_path) == normal


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "at least 2 scores"),
        ([1.0], "at least 2 scores"),
        ([[1.0], [2.0]], r"shape \(2, 1\)"),
        ([1.0, math.nan, 2.0], "number 1 is nan"),
        ([3.0, 3.0, 3.0], "All 3 scores are 3 .*does not tell responses apart"),
        ([1e6, 1e6 + 1e-3], "does not tell responses apart"),
    ],
)
def test_scores_that_cannot_be_normalised(scores, message) -> None:
    with pytest.raises(RewardError, match=message):
        Normalisation.fit(scores)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError"),
        ('{"mean": 0, "std": 1}', "KeyError: 'samples'"),
        ('{"mean": 0, "std": 0, "samples": 3}', "std above 0"),
        ('{"mean": NaN, "std": 1, "samples": 3}', "finite mean"),
        ('{"mean": "x", "std": 1, "samples": 3}', "ValueError"),
        ("[1, 2]", "TypeError"),
    ],
)
def test_broken_file_is_named(tmp_path, content, message) -> None:
    (tmp_path / "normalisation.json").write_text(content)
    with pytest.raises(RewardError, match=rf"normalisation\.json must hold.*{message}"):
        Normalisation.load(tmp_path)


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(RewardError, match=r"no .*normalisation\.json; run the reward stage"):
        Normalisation.load(tmp_path)
