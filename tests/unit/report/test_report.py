"""The report and the picture: right numbers, nothing from outside, safe text, and graceful with half a run."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import matplotlib.image
import pytest

from rlhf.errors import StageError
from rlhf.report.picture import typical_sample
from rlhf.report.report import build_report, save_curve_picture
from rlhf.tracking import rollouts
from rlhf.tracking.jsonl import JsonlSink

EVIL = '<script>alert("x")</script> & $\\frac{1}{0}$ {{ 7 * 7 }} \N{PARTY POPPER}'
MINUS = "\N{MINUS SIGN}"


def log(run_dir, stage, metrics, steps):
    sink = JsonlSink(run_dir, stage)
    for step in range(steps):
        sink.log({name: value + 0.1 * step for name, value in metrics.items()}, step)
    sink.close()


def evaluation(interval=(0.5, 1.25), samples=3):
    return {
        "prompts": 80,
        "policies": ["before", "after"],
        "metrics": {
            "score": {"before": 0.0, "after": 0.9, "difference": 0.9, "interval": list(interval)},
            "kl": {"before": 0.0, "after": 3.5, "difference": 3.5, "interval": [3.0, 4.0]},
            "components/polite": {"before": 0.25, "after": 0.125, "difference": -0.125, "interval": [-0.25, -0.0625]},
        },
        "win_rate": {"value": 0.75, "interval": [0.65, 0.83]},
        "samples": [
            {"prompt": EVIL, "before": "Wait.", "after": EVIL, "before_score": -0.5, "after_score": float(n)}
            for n in range(samples)
        ],
    }


@pytest.fixture
def whole_run(tmp_path):
    run_dir = tmp_path / "support"
    run_dir.mkdir()
    log(run_dir, "sft", {"sft/loss": 2.0, "sft/validation_loss": 2.5}, 4)
    log(run_dir, "reward", {"reward/loss": 0.7}, 3)
    log(run_dir, "reward", {"reward/expected_calibration_error": 0.0625}, 1)
    log(run_dir, "ppo", {"ppo/score": 0.0, "ppo/kl": 0.0, f"ppo/components/{EVIL}": 1.0}, 5)
    rows = [
        {"index": n, "prompt": "Hi", "response": EVIL, "score": n, "length": 3, "stop_reason": "eos"} for n in range(3)
    ]
    for iteration in (1, 5):
        rollouts.write(run_dir, rollouts.typed_rows(rows, iteration), iteration)
    (run_dir / "config.yaml").write_text(f"name: support  # {EVIL}\n", encoding="utf-8")
    (run_dir / "manifest.json").write_text(json.dumps({"stages": {"sft": {"seconds": 75.0}, "ppo": {"seconds": 3723}}}))
    (run_dir / "evaluate.json").write_text(json.dumps(evaluation()))
    return run_dir


class Page(HTMLParser):
    """Collects what the tests look at: the text, and every place that a browser would fetch or run."""

    def __init__(self, html):
        super().__init__()
        self.text, self.references, self.tags, self.open = [], [], [], []
        self.scripts, self.labels, self.policy = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.text.append(" ")
        named = dict(attrs)
        self.labels.append(named.get("aria-label") or "")
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]
        if tag in ("meta", "link", "input", "br"):
            self.open.pop()
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "action")]

    def handle_endtag(self, tag):
        self.text.append(" ")
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif "style" not in self.open:
            self.text.append(data)

    def words(self):
        return re.sub(r"\s+", " ", "".join(self.text))


def report(run_dir):
    path = build_report(run_dir)
    assert path == run_dir / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_fetches_nothing_and_may_run_its_own_scripts_only(whole_run):
    page = report(whole_run)
    assert page.references
    assert all(reference.startswith("#") or reference == "data:," for reference in page.references)
    assert not {"iframe", "img", "object"} & set(page.tags)
    html = (whole_run / "report.html").read_text(encoding="utf-8")
    styles = html[: html.index("</style>")]
    assert "@import" not in styles
    assert "url(" not in styles
    assert "default-src 'none'" in page.policy
    assert "connect-src 'none'" in page.policy
    allowed = set(re.findall(r"'sha256-([^']+)'", page.policy))
    run = [script for script in page.scripts if not re.fullmatch(r"[A-Za-z0-9+/=]+", script)]  # the others are data
    assert {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in run} == allowed
    assert len(run) >= 6


def test_text_of_users_and_models_is_shown_as_it_is(whole_run):
    page = report(whole_run)
    shown = re.sub(r"\s+", " ", EVIL)
    # 3 samples twice (prompt and response), the configuration; rollouts are packed
    assert page.words().count(shown) == 3 * 2 + 1
    assert sum(EVIL in label for label in page.labels) == 1  # one component's name, in the words of its curve
    assert not [script for script in page.scripts if "alert" in script and "Tabulator" not in script]


def test_the_headline_is_the_paired_difference_with_its_interval(whole_run):
    words = report(whole_run).words()
    assert (
        "On 80 held-out prompts the policy after PPO scores +0.9 against the one before (95% interval +0.5 to +1.25)."
        in words
    )
    assert "on 75% of them (ties count half, 95% interval 65% to 83%)" in words
    assert "no difference is shown" not in words


@pytest.mark.parametrize("interval", [(-0.1, 1.25), (-1.0, -0.0), (0.0, 1.0)])
def test_an_interval_that_includes_zero_is_said_to(whole_run, interval):
    (whole_run / "evaluate.json").write_text(json.dumps(evaluation(interval)))
    assert "which includes 0: no difference is shown" in report(whole_run).words()


def test_the_table_has_a_line_for_each_metric(whole_run):
    words = report(whole_run).words()
    assert "Score Score of a response to a held-out prompt, mean 0.00 0.90 +0.90 +0.50 to +1.25" in words
    polite = "Polite score One reward component on held-out prompts, unweighted, mean 0.250 0.125"
    assert f"{polite} {MINUS}0.125 {MINUS}0.250 to {MINUS}0.062" in words


def test_the_drawing_of_an_interval_has_its_own_scale_around_zero(whole_run):
    html = build_report(whole_run).read_text(encoding="utf-8")
    # score: 0.9 of +0.5..+1.25: 60 + 54 * value / 1.25
    assert re.search(r'class="bar clear".*?x1="81.6" x2="114.0".*?cx="98.9"', html, flags=re.DOTALL)
    # polite: -0.125 of -0.25..-0.0625
    assert re.search(r'class="bar clear".*?x1="6.0" x2="46.5".*?cx="33.0"', html, flags=re.DOTALL)
    assert 'class="bar open"' not in html


def test_stages_have_their_state_outcome_and_time(whole_run):
    words = report(whole_run).words()
    arrow = "\N{RIGHTWARDS ARROW}"
    assert f"Supervised fine-tuning finished validation loss 2.5 {arrow} 2.8 1:15" in words
    assert f"PPO finished score 0 {arrow} 0.4, kl 0 {arrow} 0.4 1:02:03" in words
    assert "Reward model unfinished" in words


def test_what_is_logged_once_is_a_number_and_not_a_curve(tmp_path):
    log(tmp_path, "reward", {"reward/expected_calibration_error": 0.0625}, 1)
    words = report(tmp_path).words()
    assert "expected_calibration_error |sigmoid(margin) - share preferred|" in words
    assert "0.0625 share" in words
    assert "Quality of the reward model" in words


def test_a_run_with_only_sft_has_a_page_of_sft(tmp_path):
    log(tmp_path, "sft", {"sft/loss": 2.0}, 4)
    page = report(tmp_path)
    assert "Supervised fine-tuning unfinished" in page.words()
    assert not any(title in page.words() for title in ("PPO", "Before and after", "Rollouts", "Configuration"))
    assert page.tags.count("section") == 2  # overview and curves
    assert not [script for script in page.scripts if "Tabulator" in script and "(c)" in script]  # nothing to list


def test_an_evaluation_of_one_policy_has_no_differences(tmp_path):
    content = {
        "prompts": 8,
        "policies": ["before"],
        "metrics": {"score": {"before": 0.5}},
        "samples": [{"prompt": "Hi", "before": "Yes"}],
    }
    (tmp_path / "evaluate.json").write_text(json.dumps(content))
    words = report(tmp_path).words()
    assert "Difference" not in words
    assert "0.500" in words
    assert "against the one before" not in words


def test_what_could_not_be_computed_is_a_dash(whole_run):
    content = evaluation()
    content["metrics"]["score"] = {
        "before": None,
        "after": float("nan"),
        "difference": float("nan"),
        "interval": [float("nan")] * 2,
    }
    content["win_rate"] = None
    (whole_run / "evaluate.json").write_text(json.dumps(content))
    words = report(whole_run).words()
    dash = "\N{EN DASH}"
    assert f"held-out prompt, mean {dash} {dash} {dash} {dash} to {dash}" in words
    assert "nan" not in words


def test_building_twice_gives_the_same_file(whole_run):
    first = build_report(whole_run).read_bytes()
    assert build_report(whole_run).read_bytes() == first


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"is not a run folder.*runs/NAME"):
        build_report(tmp_path)


def test_a_broken_file_is_named(whole_run):
    (whole_run / "evaluate.json").write_text('{"prompts": 8')
    with pytest.raises(StageError, match=r"evaluate\.json is not JSON.*run its stage again"):
        build_report(whole_run)


def test_a_file_of_the_wrong_shape_is_named(whole_run):
    (whole_run / "manifest.json").write_text("[]")
    with pytest.raises(StageError, match=r"manifest\.json holds a list, not an object"):
        build_report(whole_run)


def test_the_typical_sample_has_the_median_gain():
    gains = [0.5, -1.0, 3.0, 2.0, 0.0]
    samples = [{"before_score": 1.0, "after_score": 1.0 + gain, "gain": gain} for gain in gains]
    assert typical_sample(samples)["gain"] == 0.5
    assert typical_sample([*samples, {"before_score": None, "after_score": 9.0}])["gain"] == 0.5
    assert typical_sample([]) is None


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_drawn_with_any_text(whole_run, tmp_path, suffix):
    path = save_curve_picture(whole_run, tmp_path / "docs" / f"curve.{suffix}")
    content = path.read_bytes()
    assert len(content) > 5000
    if suffix == "png":
        height, width, _ = matplotlib.image.imread(path).shape
        assert (width, height) == (1680, 672)
    else:
        assert b"<svg" in content
    assert save_curve_picture(whole_run, path).read_bytes() == content


def test_the_picture_makes_do_with_one_of_its_parts(whole_run, tmp_path):
    both = save_curve_picture(whole_run, tmp_path / "both.png").stat().st_size
    (whole_run / "evaluate.json").unlink()
    curve_only = save_curve_picture(whole_run, tmp_path / "curve.png").stat().st_size
    assert 5000 < curve_only < both


def test_a_run_without_curve_and_samples_has_no_picture(tmp_path):
    log(tmp_path, "sft", {"sft/loss": 2.0}, 4)
    with pytest.raises(StageError, match="neither a PPO curve nor evaluated samples"):
        save_curve_picture(tmp_path, tmp_path / "curve.png")


def test_a_picture_of_another_kind_is_refused(whole_run, tmp_path):
    with pytest.raises(StageError, match=r"written as \.png or \.svg, not as '\.jpg'"):
        save_curve_picture(whole_run, tmp_path / "curve.jpg")
