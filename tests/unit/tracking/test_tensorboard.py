"""TensorBoard files, read back with TensorBoard's own reader."""

import math

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf.tracking.tensorboard import TensorBoardSink


def session(run_dir, points):
    sink = TensorBoardSink(run_dir, "ppo")
    for step, value in points:
        sink.log({"ppo/kl": value}, step)
    sink.close()


def read(run_dir):
    events = EventAccumulator(str(run_dir / "tensorboard" / "ppo"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("ppo/kl")]


def test_scalars_stand_under_their_names_and_steps(tmp_path):
    session(tmp_path, [(0, 0.5), (4, 0.25)])
    assert read(tmp_path) == [(0, 0.5), (4, 0.25)]


def test_a_resumed_stage_replaces_what_it_repeats(tmp_path):
    session(tmp_path, [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)])
    session(tmp_path, [(2, 20.0)])
    assert read(tmp_path) == [(0, 0.0), (1, 1.0), (2, 20.0)]


def test_not_a_number_is_written_without_complaint(tmp_path):
    session(tmp_path, [(0, math.nan)])
    ((step, value),) = read(tmp_path)
    assert step == 0
    assert math.isnan(value)


def test_a_stage_that_logs_nothing_leaves_no_folder(tmp_path):
    TensorBoardSink(tmp_path, "sft").close()
    assert list(tmp_path.iterdir()) == []
