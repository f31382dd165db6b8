"""Which of key, environment variable and default wins, and what the log says about it."""

import pytest

from rlhf.config.schema import WandbConfig
from rlhf.errors import ConfigError
from rlhf.tracking.wandb_settings import wandb_settings


def settings(environment=None, **keys):
    return wandb_settings(WandbConfig(**keys), environment or {}, "quickstart")


def test_the_defaults():
    found = settings()
    assert (found.mode, found.project, found.entity) == ("offline", "rlhf", None)
    assert (found.group, found.name, found.tags, found.artifacts) == ("quickstart", "quickstart", (), "reference")
    assert found.notes == ()


def test_variables_win_over_defaults():
    found = settings(
        {
            "WANDB_MODE": "online",
            "WANDB_PROJECT": "p",
            "WANDB_ENTITY": "team",
            "WANDB_RUN_GROUP": "g",
            "WANDB_NAME": "n",
            "WANDB_TAGS": "a, b,",
            "WANDB_LOG_MODEL": "end",
        }
    )
    assert (found.mode, found.project, found.entity, found.group) == ("online", "p", "team", "g")
    assert (found.name, found.tags, found.artifacts, found.notes) == ("n", ("a", "b"), "upload", ())


def test_keys_win_over_variables_and_the_log_says_so():
    found = settings({"WANDB_MODE": "online", "WANDB_PROJECT": "same"}, mode="offline", project="same", tags=["x"])
    assert (found.mode, found.project, found.tags) == ("offline", "same", ("x",))
    assert found.notes == ("tracking.wandb.mode is offline, so WANDB_MODE=online is not used",)


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online"),
    ],
)
def test_every_way_to_say_the_mode(environment, mode):
    assert settings(environment).mode == mode


def test_what_has_no_effect_is_said():
    [note] = settings({"WANDB_DIR": "/elsewhere"}).notes
    assert note == "WANDB_DIR is not used: W&B's files lie in the run folder"
    assert settings({"WANDB_DIR": "/elsewhere"}, mode="disabled").notes == ()


def test_a_value_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"WANDB_MODE is 'onlin'; allowed: online, run, .*tracking\.wandb\.mode"):
        settings({"WANDB_MODE": "onlin"})
