"""The door to TRL: what it hands out, and that nothing is reported to anyone."""

import huggingface_hub.constants

from rlhf.trl import bridge as trl_bridge


def test_the_classes_are_trls_own():
    for name in trl_bridge.__all__:
        assert getattr(trl_bridge, name).__module__.startswith("trl."), name
    assert trl_bridge.TrlPPOTrainer.__name__ == "PPOTrainer"


def test_telemetry_is_off():
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
