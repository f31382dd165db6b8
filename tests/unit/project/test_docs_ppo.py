"""docs/ppo.md: its example works, its output is the command's, and what it names exists."""

import json
import re
import subprocess
import sys

import pytest
import torch
from ppo_helpers import make_ppo, prompts, tiny
from tiny_pipeline import ROOT

from rlhf.ppo import PPOConfig
from rlhf.ppo.advantages import ESTIMATORS, AdvantageInputs
from rlhf.tracking.metrics import METRICS

TEXT = (ROOT / "docs" / "ppo.md").read_text("utf-8")


def block(language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    return found


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the example, and forgets the estimator afterwards."""
    before = dict(ESTIMATORS)
    exec(block("python"), {})
    [name] = set(ESTIMATORS) - set(before)
    yield name
    ESTIMATORS.clear()
    ESTIMATORS.update(before)


def test_the_estimator_of_the_example_is_what_it_says(registered: str):
    rewards = torch.tensor([[1.0, 2.0], [5.0, 99.0], [0.0, -4.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    zeros = torch.zeros(3, 2)
    inputs = AdvantageInputs(rewards, mask, zeros, torch.zeros(3), torch.tensor([7, 7, 2]), gamma=1.0, gae_lambda=0.9)
    advantages, returns = ESTIMATORS[registered].estimate(inputs)
    assert advantages.tolist() == [[-1.0, -1.0], [1.0, 0.0], [0.0, 0.0]]  # R is 3, 5 and -4; the first two share 4
    assert returns.tolist() == [[3.0, 3.0], [5.0, 0.0], [-4.0, -4.0]]


def test_a_registered_estimator_trains(registered: str):
    made = make_ppo(tiny(), advantage=registered, samples_per_prompt=4, total_episodes=16, max_response_tokens=4,
        learning_rate=1e-2, epochs=1, dataset=prompts([[3], [4, 5]]),
        reward=lambda completion_ids, **_: [float(len(set(ids))) for ids in completion_ids],
    )  # fmt: skip
    before = made.actor_critic.policy.lm_head.weight.detach().clone()
    made.train()
    assert made.actor_critic.value_model is None
    assert made.progress.iteration == 2
    assert not torch.equal(made.actor_critic.policy.lm_head.weight, before)


def test_the_explanation_is_the_commands():
    command = [sys.executable, "-m", "rlhf", "ppo", "configs/quickstart.yaml", "--explain"]
    environment = {"PATH": "", "COLUMNS": "110", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [shown] = re.findall(r"^```\n\$ rlhf ppo configs/quickstart.yaml --explain\n(.*?)^```", TEXT, re.DOTALL | re.M)
    assert [line.rstrip() for line in done.stdout.splitlines() if line.strip()] == shown.splitlines()


def test_all_estimators_are_described():
    table = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \| (\d) or more \|", TEXT, re.MULTILINE)
    assert {name: critic == "yes" for name, critic, _ in table} == {
        name: estimator.uses_critic for name, estimator in ESTIMATORS.items()
    }


def test_what_the_page_names_exists():
    files = set(re.findall(r"`([\w/]+\.py)`", TEXT))
    assert len(files) > 8
    assert not [name for name in files if not (ROOT / "rlhf" / name).is_file()]
    for name in set(re.findall(r"`(ppo/\w+)`", TEXT)):
        assert name in METRICS
    source = "".join(path.read_text("utf-8") for path in (ROOT / "rlhf" / "ppo").glob("*.py"))
    steps = TEXT.partition("## Advantage estimators")[0]
    functions = [*re.findall(r": `(\w+)`", steps), "masked_whiten", "update"]
    assert len(functions) > 6
    assert not [name for name in functions if f"def {name}(" not in source]


def test_keys_of_section_ppo_that_the_page_names_exist():
    schema = json.loads((ROOT / "configs" / "schema.json").read_text("utf-8"))
    for key in set(re.findall(r"`((?:ppo|model|runtime)\.[\w.]+)", TEXT)):
        found = {"properties": schema["properties"]}
        for name in key.split("."):
            assert name in properties(found, schema), key
            found = properties(found, schema)[name]


def properties(entry: dict, schema: dict) -> dict:
    """The keys below an entry of a JSON schema, behind references and alternatives."""
    found = dict(entry.get("properties", {}))
    for other in (*entry.get("anyOf", ()), *entry.get("allOf", ())):
        found |= properties(other, schema)
    if entry.get("$ref"):
        found |= properties(schema["$defs"][entry["$ref"].rpartition("/")[2]], schema)
    return found


def test_defaults_are_those_that_the_page_gives():
    fields = PPOConfig.__dataclass_fields__
    assert (fields["gradient_checkpointing"].default, fields["adam_epsilon"].default) == (False, 1e-5)
    for name in re.findall(r"`(\w+)`", TEXT.partition("- **As in TRL**")[2].partition("- **Acts here")[0]):
        assert name in fields or name in ("eval_dataset", "peft_config", "callbacks", "optimizers")
