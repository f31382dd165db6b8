"""Which W&B run a stage writes to: kept over resume, new for other inputs, and what it has already."""

import json

from rlhf.tracking.jsonl import JsonlSink
from rlhf.tracking.wandb_runs import open_run


def session(run_dir, stage, fingerprint, points, tracked=True):
    """One session of a stage: returns its W&B run."""
    sink = JsonlSink(run_dir, stage)
    run = open_run(run_dir, stage, fingerprint, sink.session) if tracked else None
    for step, metrics in points:
        sink.log(metrics, step)
    sink.close()
    return run


def test_each_stage_has_a_run_that_is_kept_over_resume(tmp_path):
    first = session(tmp_path, "ppo", "a", [(1, {"ppo/kl": 0.1}), (2, {"ppo/kl": 0.2})])
    other = session(tmp_path, "sft", "b", [(9, {"sft/loss": 1.0})])
    again = session(tmp_path, "ppo", "a", [(2, {"ppo/kl": 0.2})])
    assert first.id == again.id != other.id
    assert (first.sent, again.sent, other.sent) == ({}, {"ppo/kl": 2}, {})
    assert first.previous is again.previous is None


def test_other_inputs_are_a_new_run_that_knows_the_old_one(tmp_path):
    old = session(tmp_path, "ppo", "a", [(1, {"ppo/kl": 0.1})])
    new = session(tmp_path, "ppo", "b", [(1, {"ppo/kl": 0.3})])
    resumed = session(tmp_path, "ppo", "b", [(2, {"ppo/kl": 0.4})])
    assert new.id != old.id
    assert new.previous == resumed.previous == old.id
    assert (new.sent, resumed.sent) == ({}, {"ppo/kl": 1})


def test_what_was_logged_without_wandb_was_not_sent(tmp_path):
    session(tmp_path, "ppo", "a", [(1, {"ppo/kl": 0.1})])
    session(tmp_path, "ppo", "a", [(2, {"ppo/kl": 0.2, "ppo/score": 1.0})], tracked=False)
    assert session(tmp_path, "ppo", "a", []).sent == {"ppo/kl": 1}


def test_the_file_can_be_read_by_people(tmp_path):
    run = session(tmp_path, "ppo", "a", [])
    content = json.loads((tmp_path / "wandb_runs.json").read_text("utf-8"))
    assert content == {"ppo": {"id": run.id, "fingerprint": "a", "sessions": [0], "previous": None}}
