"""docs/metrics.md is what `rlhf metrics` prints, and holds every metric."""

from pathlib import Path

from rlhf.tracking.glossary import glossary_text
from rlhf.tracking.metrics import METRICS

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_is_made_from_the_metrics():
    assert PAGE.read_text("utf-8") == glossary_text(), "run: rlhf metrics > docs/metrics.md"


def test_every_metric_has_a_row_of_five_cells():
    rows = [line for line in glossary_text().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(METRICS)
    assert all(row.replace("\\|", "").count("|") == 6 for row in rows)
