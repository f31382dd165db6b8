"""How the cost is measured, fitted, drawn and written down."""

import json
import time
from dataclasses import replace

import pytest
from tiny_pipeline import ROOT

from benchmarks import scaling
from benchmarks.breakdown import KINDS, breakdown, kind_of
from benchmarks.scaling import AXES, BASE, RESULTS, draw, measure, slope, table
from benchmarks.trainers import MODES, PHASES

TINY = replace(BASE, episodes=4, response_tokens=4, layers=1, hidden_size=64, intermediate_size=64, vocabulary=16)


def points(seconds_of):
    """Three repetitions each, of which the middle one counts."""
    return [
        {"place": n, "seconds": {name: [seconds_of(n) * f for f in (9.0, 1.0, 0.5)] for name in scaling.COLOURS}}
        for n in (2, 4, 8, 16, 32)
    ]


def test_the_slope_of_a_power_law_is_its_exponent():
    assert slope([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5, abs=1e-9)


def test_a_table_has_every_point_and_both_slopes():
    """The second slope is that of the largest points, where this curve is no longer flat."""
    lines = table("tokens", [1000, 2000, 4000, 8000], {"a": [0.1, 0.1, 0.2, 0.4]}, both=True).splitlines()
    assert lines[:4] == ["| tokens | a |", "| --- | --- |", "| 1,000 | 0.100 |", "| 2,000 | 0.100 |"]
    assert lines[-2:] == ["| slope | **0.70** |", "| slope of the last 3 | **1.00** |"]


def test_the_middle_repetition_counts():
    (text,) = scaling.axis_tables({"episodes": points(lambda n: n**2 / 1000)})
    assert "| 16 | 0.256 | 0.256 | 0.256 | 0.256 |" in text


def test_the_parts_of_a_phase_are_columns():
    parts = {
        str(n): {phase: dict.fromkeys(KINDS, float(n * (1 + at))) for at, phase in enumerate(PHASES)} for n in (2, 4, 8)
    }
    lines = scaling.breakdown_table(parts).splitlines()
    assert lines[0].startswith("| response tokens | rollout: products | rollout: attention | rollout: other | score:")
    assert lines[3].startswith("| 4 | 4.000 | 4.000 | 4.000 | 8.000 |")


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::addmm_", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_softmax", "attention"),
        ("aten::mul", "other"),
    ],
)
def test_operations_are_sorted(operation, kind):
    assert kind_of(operation) == kind


def test_an_iteration_is_taken_apart(monkeypatch):
    """Products of decoding are among the products, also compiled ones, of which torch knows nothing."""
    decoding = pytest.importorskip("rlhf.cpu.decoding")
    library, calls = decoding.library(), []

    class Slow:
        def __getattr__(self, name):
            def slow(*arguments):
                calls.append(time.sleep(0.01))
                return getattr(library, name)(*arguments)

            return slow

    monkeypatch.setattr(decoding, "library", Slow)
    parts = breakdown(MODES["fp32"], TINY)
    assert list(parts) == list(PHASES)
    assert all(parts[phase][kind] > 0 for phase in PHASES for kind in KINDS)
    assert parts["rollout"]["products"] > 0.01 * len(calls) / 2 > 0  # half of the calls are of the first iteration


def test_the_picture_is_drawn(tmp_path):
    draw({axis: points(lambda n: n) for axis in AXES}, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_every_axis_changes_one_thing_over_at_least_five_points():
    for shapes in AXES.values():
        assert len(shapes) >= 5
        assert BASE in [replace(shape, intermediate_size=BASE.intermediate_size) for shape in shapes]


def test_a_point_is_measured():
    point = measure("weights", TINY, repetitions=2)
    assert point["place"] == 4 * 64**2 + 3 * 64 * 64 + 64 * 16
    assert {name: len(seconds) for name, seconds in point["seconds"].items()} == dict.fromkeys(scaling.COLOURS, 2)
    for number, total in enumerate(point["seconds"]["iteration"]):
        assert total == pytest.approx(sum(point["seconds"][phase][number] for phase in PHASES), abs=1e-4)


def test_the_document_ends_with_the_figures_that_were_kept():
    text = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    assert text.endswith(scaling.figures(json.loads(RESULTS.read_text())))
