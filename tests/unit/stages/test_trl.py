"""The door to TRL: what it hands out, and that nothing is reported to anyone."""

import huggingface_hub.constants

from rlhf.stages import trl


def test_the_classes_are_trls_own():
    for name in trl.__all__:
        assert getattr(trl, name).__module__.startswith("trl."), name


def test_telemetry_is_off():
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
