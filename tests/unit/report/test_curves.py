"""Which curves stand together, how they are smoothed, and that the SVG is self-contained."""

import re
import xml.etree.ElementTree as ElementTree

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


def test_known_curves_share_their_chart_and_others_get_their_own():
    names = ["ppo/score", "ppo/reward", "ppo/components/a", "ppo/components/b", "ppo/ratio_max", "sft/loss"]
    main, rest = charts_of("ppo", {name: curve(3) for name in names})
    assert [(chart.title, [line.name for line in chart.lines]) for chart in main] == [
        ("Score", ["score", "reward"]),
        ("Reward components", ["a", "b"]),
    ]
    assert [chart.title for chart in rest] == ["ratio_max"]
    assert main[0].lines[0].unit == "score"
    assert len({line.colour for line in main[1].lines}) == 2


def test_one_point_is_no_curve():
    assert charts_of("sft", {"sft/loss": curve(1)}) == ([], [])


def test_a_curve_that_this_version_does_not_know_is_still_drawn():
    _, rest = charts_of("ppo", {"ppo/of_another_version": curve(3)})
    assert [(chart.title, chart.lines[0].meaning) for chart in rest] == [("of_another_version", "")]


def test_more_curves_than_colours_are_all_drawn():
    (chart,), _ = charts_of("ppo", {f"ppo/components/c{i}": curve(3, i + 1) for i in range(14)})
    assert len(chart.lines) == 14
    drawn = re.findall(r'id="line2d_\d+"', chart.svg)
    assert len(drawn) >= 14


def test_the_svg_scales_and_names_no_other_place():
    (chart,), _ = charts_of("sft", {"sft/loss": curve(40)})
    root = ElementTree.fromstring(chart.svg)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert not re.findall(r'(?:href|src)="(?!#)', chart.svg)
    assert "<metadata" not in chart.svg


def test_the_same_curve_gives_the_same_svg():
    assert charts_of("sft", {"sft/loss": curve(40)}) == charts_of("sft", {"sft/loss": curve(40)})
