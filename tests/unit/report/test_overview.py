"""The head of the page: how far a run is, where its time went, and where its configuration came from."""

import json

import pytest

from rlhf.report.overview import config_lines, facts, headline, quality, stages
from rlhf.results.run import load_run
from rlhf.tracking.jsonl import JsonlSink

CONFIG = """\
# Every key of this run, defaults included.
name: x  # my.yaml:1
sft: null  # default
ppo:
  iterations: 6  # override
evaluate:
  seed: 1  # default
"""


def log(run_dir, stage, *points):
    sink = JsonlSink(run_dir, stage)
    for step, metrics in enumerate(points, 1):
        sink.log({f"{stage}/{name}": value for name, value in metrics.items()}, step)
    sink.close()


@pytest.fixture
def half_way(tmp_path):
    """PPO was interrupted in its third iteration."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    times = {"seconds/update": 2.0, "seconds/rollout": 3.0, "seconds/score": 1.0}
    log(tmp_path, "ppo", {"score": 0.5, "kl": 0.0, **times}, {"score": 1.5, "kl": 0.25, **times})
    return tmp_path


def finish(run_dir, **stages):
    (run_dir / "manifest.json").write_text(json.dumps({"stages": stages}))


def test_a_run_that_is_not_complete_says_how_far_it_is(half_way):
    arrow = "\N{RIGHTWARDS ARROW}"
    assert headline(load_run(half_way)) == (
        f"This run is not complete: the stage PPO has not finished. So far: 2 of 6 iterations, score 0.5 {arrow} 1.5, "
        f"kl 0 {arrow} 0.25."
    )
    assert [(stage.title, stage.state) for stage in stages(load_run(half_way))] == [
        ("PPO", "unfinished"),
        ("Evaluation", "not started"),
    ]
    finish(half_way, ppo={"seconds": 20.0})
    assert headline(load_run(half_way)) == "This run is not complete: the stage Evaluation has not started."


def test_the_time_of_a_stage_is_split_and_the_rest_is_named(half_way):
    finish(half_way, ppo={"seconds": 20.0})
    phases = stages(load_run(half_way))[0].phases
    assert [(phase.name, phase.seconds) for phase in phases] == [
        ("sampling", 6.0), ("scoring", 2.0), ("update", 4.0), ("other", 8.0),
    ]  # fmt: skip


def test_what_a_run_ran_on(half_way):
    assert facts(load_run(half_way)) == []
    record = {"seed": 3, "started": "2026-01-02T03:04:05+00:00", "versions": {"torch": "2.13"}, "commit": "abc"}
    finish(half_way, ppo=record | {"machine": {"cores": 2, "memory": "8 GB"}})
    assert facts(load_run(half_way)) == [
        ("Seed", "3"),
        ("Started, UTC", "2026-01-02 03:04:05"),
        ("Commit", "abc"),
        ("Machine", "cores 2, memory 8 GB"),
        ("torch", "2.13"),
    ]


def test_the_reward_models_accuracy_has_its_interval(tmp_path):
    ends = {"validation_accuracy_low": 0.625, "validation_accuracy_high": 0.875}
    log(tmp_path, "reward", {"validation_accuracy": 0.5}, {"validation_accuracy": 0.75, **ends})
    (row,) = quality(load_run(tmp_path))
    assert (row.name, row.value, row.interval) == ("Validation accuracy", 0.75, (0.625, 0.875))


def test_a_line_of_the_configuration_knows_where_its_value_came_from():
    lines = config_lines(CONFIG + "stop: '  # x'  # my.yaml:9\n")
    assert [line.kind for line in lines] == [
        "plain",
        "chosen",
        "default",
        "plain",
        "chosen",
        "plain",
        "default",
        "chosen",
    ]
    assert (lines[1].text, lines[1].origin) == ("name: x", "my.yaml:1")
    assert (lines[-1].text, lines[-1].origin) == ("stop: '  # x'", "my.yaml:9")
