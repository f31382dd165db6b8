"""Probes are reached by a trainer that works, and missed by one that does not."""

import pytest

from rlhf.errors import ConfigError, StageError
from rlhf.probe.probes import PROBES, run_probes
from rlhf.probe.table import HEADER, line

SHORT = ["ppo.iterations=2", "ppo.episodes_per_iteration=16"]


@pytest.mark.slow
def test_every_probe_is_reached():
    results = list(run_probes([], []))
    assert [result.name for result in results] == list(PROBES)
    for result in results:
        assert result.first == pytest.approx(0.25, abs=0.2), result
        assert result.reached, result


@pytest.mark.slow
def test_a_trainer_that_does_not_learn_misses():
    (result,) = run_probes(["token"], ["ppo.learning_rate=1.0e-9", *SHORT])
    assert not result.reached
    assert result.iterations == 2
    assert "MISSED: look at the policy gradient" in line(result)
    assert len(HEADER.split()) == 6


@pytest.mark.parametrize(("names", "overrides", "error"), [(["tokn"], [], StageError), ([], ["ppo.x=1"], ConfigError)])
def test_mistakes_are_refused_before_anything_is_trained(names, overrides, error):
    with pytest.raises(error):
        next(run_probes(names, overrides))
