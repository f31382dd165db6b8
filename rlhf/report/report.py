"""report.html: everything a run has to show, in one file that needs no network and no server.

Read from the run folder alone, so it can be built again at any time, also of a run that goes on or has failed; parts
that are missing are left out. Numbers are taken as they stand in the files: nothing is evaluated here.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf.files.atomic import write_text
from rlhf.report.comparison import rows_of
from rlhf.report.episodes import blocks_of, pack
from rlhf.report.overview import config_lines, facts, headline, quality, stages
from rlhf.report.picture import save_curve_picture
from rlhf.report.sections import curve_sections
from rlhf.results.run import Run, load_run
from rlhf.tracking.progress import format_seconds
from rlhf.tracking.text import as_text, number, signed
from rlhf.tracking.watch import signs_of_trouble

__all__ = ["build_report", "render", "save_curve_picture"]

_FOLDER = Path(__file__).parent
_STYLES = ("vendor/uplot/uPlot.min.css", "vendor/tabulator/tabulator_simple.min.css", "page/page.css")
_CURVE_SCRIPTS = ("vendor/uplot/uPlot.iife.min.js",)
_ROLLOUT_SCRIPTS = ("vendor/tabulator/tabulator.min.js",)
_SCRIPTS = ("page/data.js", "page/curves.js", "page/tokens.js", "page/rollouts.js", "page/start.js")
_POLICY_NAMES = {"before": "Before", "after": "After"}


def build_report(run_dir: str | Path, beside: Sequence[str | Path] = ()) -> Path:
    """Writes `run_dir/report.html`.

    Args:
        run_dir: The run folder.
        beside: Folders of other runs, for example of other seeds, whose curves are drawn over those of this one.

    Returns:
        The file's path.

    Raises:
        StageError: There is no such run folder, or one of its files is broken.
    """
    path = Path(run_dir) / "report.html"
    write_text(path, render(load_run(run_dir), [load_run(other) for other in beside]))
    return path


def render(run: Run, beside: Sequence[Run] = (), state: str | None = None) -> str:
    """The page of a run.

    Args:
        run: The run.
        beside: Other runs, whose curves are drawn over those of this one.
        state: Of a page that is served: what the server says as long as the run has nothing new.
    """
    sections = curve_sections([run, *beside])
    charts = [chart.data() for section in sections for chart in (*section.main, *section.rest)]
    blocks = blocks_of(run) | ({"curves": pack(json.dumps(charts, allow_nan=False))} if charts else {})
    libraries = (*(_CURVE_SCRIPTS if charts else ()), *(_ROLLOUT_SCRIPTS if "episodes" in blocks else ()))
    scripts = [_asset(name) for name in (*libraries, *_SCRIPTS)]
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(number=number, signed=signed, plain=as_text, duration=format_seconds)
    return environment.get_template("page.html.jinja").render(
        name=run.name,
        state=state,
        policy=_content_policy(scripts, served=state is not None),
        styles=Markup("\n".join(_asset(name) for name in _STYLES)),
        scripts=[Markup(script) for script in scripts],
        blocks=blocks,
        headline=headline(run),
        signs=[str(sign) for sign in signs_of_trouble(run.series)],
        stages=stages(run),
        total_seconds=sum(run.seconds.values()),
        facts=facts(run),
        comparison=rows_of(run.evaluation),
        samples=run.evaluation.get("samples", []),
        policies=[(key, _POLICY_NAMES.get(key, key)) for key in run.evaluation.get("policies", [])],
        has_rollouts="episodes" in blocks,
        curves=sections,
        quality=quality(run),
        config=config_lines(run.config),
    )


def _asset(name: str) -> str:
    """A style sheet or script, without the place of its source map, which is not shipped."""
    return (_FOLDER / name).read_text(encoding="utf-8").partition("//# sourceMappingURL")[0]


def _content_policy(scripts: Sequence[str], *, served: bool) -> str:
    """What a browser lets the page do: run its own scripts, known by their hashes, and reach nothing.

    So text of a model could not run even if it became markup.
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii") for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    reach = "'self'" if served else "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; connect-src {reach}; "
        "base-uri 'none'; form-action 'none'"
    )
