"""TensorBoard files, read back with TensorBoard's own reader."""

import math

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf.tracking.tensorboard import TensorBoardSink


def session(run_dir, points):
    sink = TensorBoardSink(run_dir, "ppo", {"ppo": {"kl": {"coefficient": 0.05}, "data": None}, "seed": 1})
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
    TensorBoardSink(tmp_path, "sft", {}).close()
    assert list(tmp_path.iterdir()) == []


def test_histograms_responses_and_hyperparameters_are_shown(tmp_path):
    row = {"prompt": "<i>Hi</i>", "kl": 0.5, "length": 2, "reward": 1.0}
    rows = [{**row, "response": f"r{i}", "score": float(i)} for i in range(12)]
    sink = TensorBoardSink(tmp_path, "ppo", {"ppo": {"kl": {"coefficient": 0.05}, "data": None}})
    sink.log_rollouts(rows, 3)
    sink.log({"ppo/kl": 1.0}, 3)
    sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "ppo"), size_guidance={"histograms": 0, "tensors": 0})
    events.Reload()
    [reward] = events.Histograms("ppo/histograms/reward")
    assert (reward.step, reward.histogram_value.num, reward.histogram_value.sum) == (3, 12, 12.0)
    [text] = events.Tensors("ppo/responses/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert [f"r{i}\n" in shown + "\n" for i in range(12)] == [i < 4 or i >= 8 for i in range(12)]
    assert "    <i>Hi</i>" in shown  # as a code block
    assert "_hparams_/session_start_info" in events.summary_metadata
