"""Every metric says what it is, and nothing undocumented is logged."""

import re

import pytest
from pydantic import BaseModel

from rlhf.config.schema import Config
from rlhf.tracking.metrics import METRICS, describe, find

REQUIRED = """
sft/loss sft/validation_loss sft/perplexity sft/learning_rate sft/gradient_norm
reward/loss reward/accuracy reward/margin reward/validation_accuracy reward/expected_calibration_error
ppo/score ppo/score_std ppo/reward ppo/kl ppo/kl_coefficient ppo/kl_penalty ppo/entropy ppo/response_tokens
ppo/stopped_share ppo/loss/policy ppo/loss/value ppo/approx_kl ppo/clip_fraction ppo/value_clip_fraction ppo/ratio
ppo/ratio_max ppo/explained_variance ppo/gradient_norm ppo/skipped_steps ppo/learning_rate ppo/sampler_logprob_gap
ppo/importance_weight ppo/unscored_episodes ppo/seconds/rollout ppo/seconds/score ppo/seconds/update
ppo/samples_per_second ppo/components/politeness evaluate/score evaluate/win_rate evaluate/kl evaluate/perplexity
evaluate/distinct_2 evaluate/stopped_share evaluate/response_tokens evaluate/components/politeness
""".split()


@pytest.mark.parametrize("name", METRICS)
def test_every_entry_has_meaning_and_unit(name):
    metric = METRICS[name]
    assert metric.name == name
    assert name.split("/")[0] in {"sft", "reward", "ppo", "evaluate"}
    assert len(metric.meaning) > 10
    assert metric.unit


@pytest.mark.parametrize("name", REQUIRED)
def test_what_the_stages_log_is_documented(name):
    assert describe(name).meaning


def test_a_name_under_a_documented_prefix_is_described_by_the_prefix():
    assert describe("ppo/components/any/thing") is METRICS["ppo/components/<name>"]
    assert describe("sft/trainer/total_flos") is METRICS["sft/trainer/<name>"]


@pytest.mark.parametrize(
    "name", ["ppo/kll", "kl", "ppo/", "ppo/components", "ppo/components/", "ppo/components/<name>x/y"]
)
def test_prefixes_are_the_only_open_doors(name):
    known = name.startswith("ppo/components/") and name != "ppo/components/"
    assert (find(name) is not None) == known


def test_an_unknown_name_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"unknown metric 'ppo/kll'; did you mean ppo/kl\?.*metrics\.py"):
        describe("ppo/kll")


def config_keys(section=Config, prefix=""):
    """Dotted keys of the configuration file."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from config_keys(kind, f"{prefix}{name}.")


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.healthy != (None, None)])
def test_a_healthy_range_has_a_remedy_that_names_real_keys_and_metrics(name):
    metric = METRICS[name]
    low, high = metric.healthy
    assert low is None or high is None or low <= high
    assert metric.remedy.endswith(".")
    keys = set(config_keys())
    named = re.findall(r"\b(?:sft|reward|ppo|evaluate|model)\.[a-z_.]+[a-z]", metric.remedy)
    assert [key for key in named if key not in keys] == []
    for other in re.findall(r"\b(?:ppo|sft|reward|evaluate)/\w+", metric.remedy):
        assert other in METRICS


def test_what_is_measured_of_one_policy_is_described_by_the_quantity():
    after, before = describe("evaluate/after/kl"), describe("evaluate/before/kl")
    assert (after.unit, after.healthy, after.name) == ("nats", (-1, 30), "evaluate/after/kl")
    assert (before.unit, before.healthy) == ("nats", (None, None))
    assert describe("evaluate/difference/components/polite").unit == "score"
    assert describe("evaluate/after/whatever") is METRICS["evaluate/after/<name>"]
