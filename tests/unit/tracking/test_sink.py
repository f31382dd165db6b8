"""The guard around a sink: its first error is said once and switches it off; everything else goes through."""

import logging

import pytest

from rlhf.tracking.sink import Artifact, Guarded, Sink


class Broken(Sink):
    """Fails from the second point on, and remembers who asked for what."""

    def __init__(self):
        self.calls = []

    def log(self, metrics, step):
        self.calls.append(("log", step))
        if step > 1:
            raise OSError(28, "No space left on device")

    def log_rollouts(self, rows, iteration):
        self.calls.append(("rollouts", iteration))

    def log_table(self, name, rows):
        self.calls.append(("table", name))

    def log_artifacts(self, read, made):
        self.calls.append(("artifacts", [entry.name for entry in made]))

    def close(self, failed=False):
        self.calls.append(("close", failed))


def test_a_healthy_sink_gets_every_call():
    sink = Broken()
    guarded = Guarded("X", lambda: sink)
    guarded.log({}, 1)
    guarded.log_rollouts([], 2)
    guarded.log_table("t", [])
    guarded.log_artifacts([], [Artifact("sft", "model", None, {})])
    guarded.close(True)
    assert sink.calls == [("log", 1), ("rollouts", 2), ("table", "t"), ("artifacts", ["sft"]), ("close", True)]


def test_the_first_error_is_said_once_and_the_sink_is_off(caplog):
    sink = Broken()
    guarded = Guarded("W&B", lambda: sink)
    for step in (1, 2, 3, 4):
        guarded.log({}, step)
    guarded.close()
    assert sink.calls == [("log", 1), ("log", 2), ("close", True)]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "W&B is off for the rest of this stage: OSError: [Errno 28] No space left on device. Training goes on."
    )


def test_a_sink_that_cannot_be_opened_is_off(caplog):
    def fail():
        raise PermissionError("read-only")

    guarded = Guarded("TensorBoard", fail)
    guarded.log({}, 1)
    guarded.close()
    assert guarded.sink is None
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard is off for the rest of this stage: PermissionError: read-only. Training goes on."
    ]


def test_the_user_can_still_interrupt():
    class Interrupted(Sink):
        def log(self, metrics, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded("X", Interrupted).log({}, 1)
