"""Which curves stand together, how they are smoothed, and several runs over one another."""

import numpy as np
import pytest

from rlhf.report.curves import charts_of, running_mean, smooth


def curve(length, value=1.0):
    return [(step, value * step) for step in range(length)]


@pytest.mark.parametrize("window", [1, 3, 5, 11])
def test_the_running_mean_is_the_mean_over_the_window(window):
    values = np.random.default_rng(0).normal(size=17).tolist()
    half = window // 2
    expected = [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]
    assert running_mean(values, window) == pytest.approx(expected, abs=1e-12)


def test_only_long_and_restless_curves_are_smoothed():
    noise = np.random.default_rng(0).normal(size=40).tolist()
    assert smooth(list(enumerate(noise[:29]))) is None
    assert smooth(list(enumerate(noise))) is not None
    assert smooth(curve(40)) is None
    assert smooth([(step, 0.05) for step in range(40)]) is None


def values(chart):
    return {line.name: line.values for line in chart.lines}


def test_known_curves_share_their_chart_and_others_get_their_own():
    names = ["ppo/score", "ppo/reward", "ppo/components/a", "ppo/components/b", "ppo/ratio_max", "sft/loss"]
    main, rest = charts_of("ppo", {"one": {name: curve(3) for name in names}})
    assert [(chart.title, [line.name for line in chart.lines]) for chart in main] == [
        ("Score", ["score", "reward"]),
        ("Reward components", ["a", "b"]),
    ]
    assert [chart.title for chart in rest] == ["ratio_max"]
    assert main[0].lines[0].unit == "score"
    assert [line.colour for line in main[1].lines] == [0, 1]


def test_lines_of_other_lengths_meet_at_their_steps():
    main, _ = charts_of(
        "sft", {"one": {"sft/loss": [(1, 3.0), (2, 2.0), (4, 1.0)], "sft/validation_loss": [(2, 5.0), (4, 4.0)]}}
    )
    assert main[0].steps == [1, 2, 4]
    assert values(main[0]) == {"loss": [3.0, 2.0, 1.0], "validation_loss": [None, 5.0, 4.0]}


def test_other_seeds_are_drawn_over_the_first():
    runs = {"seed0": {"ppo/score": curve(3)}, "seed1": {"ppo/score": curve(4, 2.0)}, "seed2": {}}
    (chart,), _ = charts_of("ppo", runs)
    assert chart.steps == [0, 1, 2, 3]
    assert values(chart) == {"score, seed0": [0, 1, 2, None], "score, seed1": [0, 2, 4, 6]}
    assert [(line.colour, line.run) for line in chart.lines] == [(0, 0), (0, 1)]


def test_one_point_is_no_curve():
    assert charts_of("sft", {"one": {"sft/loss": curve(1)}}) == ([], [])


def test_a_curve_that_this_version_does_not_know_is_still_drawn():
    _, rest = charts_of("ppo", {"one": {"ppo/of_another_version": curve(3)}})
    assert [(chart.title, chart.lines[0].meaning) for chart in rest] == [("of_another_version", "")]


def test_a_restless_curve_has_its_mean_over_it():
    noise = list(enumerate(np.random.default_rng(0).normal(size=40).tolist()))
    (chart,), _ = charts_of("sft", {"one": {"sft/loss": noise}})
    assert [(line.name, line.faint) for line in chart.lines] == [("loss, as logged", True), ("loss", False)]
    assert chart.lines[0].values == [value for _, value in noise]
    assert chart.lines[1].values == smooth(noise)


def test_what_a_chart_shows_is_said_in_words():
    (chart,), _ = charts_of("ppo", {"one": {"ppo/score": [(1, 0.5), (2, -1.0)], "ppo/reward": [(1, 0.0), (2, 2.0)]}})
    minus = "\N{MINUS SIGN}"
    assert chart.summary() == f"Score, over 2 points by iteration: score from 0.5 to {minus}1; reward from 0 to 2"
