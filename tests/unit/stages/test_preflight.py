"""The preflight: what any stage would stumble over is said before the first one trains, by key, file and line."""

import json
from pathlib import Path

import pytest
from transformers import MambaConfig

from reward_models.errors import RewardError, UserError
from rlhf.config.load import load_config
from rlhf.errors import DataError, ModelError, StageError
from rlhf.run.fingerprint import configured_stages
from rlhf.stages.preflight import preflight

TINY = Path(__file__).parents[3] / "configs" / "tiny.yaml"
FEW = [f"{stage}.data.{key}" for stage in ("sft", "reward") for key in ("max_rows=12", "validation_fraction=0")]


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Check the tiny run with overrides; files go into the working folder."""
    monkeypatch.chdir(tmp_path)

    def check(*overrides: str) -> dict:
        config = load_config(TINY, [*FEW, *overrides]).config
        return preflight(config, configured_stages(config))

    return check


def prompts(*rows) -> str:
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return "ppo.data={path: prompts.jsonl, validation_fraction: 0}"


def own(source: str) -> str:
    Path("mine.py").write_text(source, encoding="utf-8")
    return "mine.py"


EVALUATE_THEM = "evaluate={data: {path: prompts.jsonl, validation_fraction: 0}}"


def test_every_stage_gets_the_rows_that_it_will_train_on(check):
    inputs = check()
    assert list(inputs) == ["sft", "reward", "ppo", "evaluate"]
    tokenizer = inputs["sft"].tokenizer
    row = inputs["sft"].rows.train[0]
    assert tokenizer.decode(row.tokens[0].response).endswith(f"{row.response}{tokenizer.eos_token}")
    assert all(row.tokens for row in inputs["ppo"].prompts)


def test_a_prompt_that_is_too_long_names_file_and_line_or_is_left_out(check):
    rows = [{"prompt": "Hello?"}, {"prompt": "word " * 600}, {"prompt": "And you?"}]
    with pytest.raises(DataError, match=r"prompts.jsonl, line 2, column prompt: \d+ tokens, 512 are allowed"):
        check(prompts(*rows), "evaluate=null")
    data = prompts(*rows).replace("}", ", on_bad_row: skip}")
    assert {row.prompt for row in check(data, "evaluate=null")["ppo"].prompts} == {"And you?", "Hello?"}


def test_a_prompt_that_the_template_refuses_names_file_and_line(check):
    refuses = "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    writes = "{{ m.role + ':\\n' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    opens = "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    template = f"{{% for m in messages %}}{refuses}{writes}{{% endfor %}}{opens}"
    Path("strict.jinja").write_text(template, encoding="utf-8")
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    with pytest.raises(DataError, match=r"prompts.jsonl, line 2.*System role not supported"):
        check(prompts({"prompt": "Hello?"}, {"prompt": asked}), "model.chat_template=strict.jinja", "evaluate=null")


def test_mistakes_of_several_stages_are_named_together(check):
    with pytest.raises(StageError) as error:
        check("sft.max_tokens=1024", "ppo.rewards.more={function: lenght}")
    assert str(error.value).startswith("2 mistakes")
    assert "sft.max_tokens 1024" in str(error.value)
    assert "lenght" in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def mine(completions, answer, **_):\n    return [1.0] * len(completions)\n", "answer"),
        ("def mine(completions, **_):\n    raise KeyError('gold')\n", "gold"),
        ("def mine(completions, **_):\n    return [1.0]\n", "1 values for 2 samples"),
    ],
)
def test_reward_functions_are_called_once(source, message, check):
    file = own(source)
    with pytest.raises(RewardError, match=message):
        check(f"ppo.rewards.more={{function: '{file}:mine'}}")


def test_a_reward_function_that_needs_a_column_gets_it(check):
    file = own("def mine(completions, answer, **_):\n    return [float(len(a)) for a in answer]\n")
    rows = [{"prompt": "One?", "answer": "1"}, {"prompt": "Two?", "answer": "2"}]
    check(prompts(*rows), f"ppo.rewards.more={{function: '{file}:mine'}}", EVALUATE_THEM)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.environment.id=rlhf/Dialog-v0", "Dialog"),
        ("ppo.environment={id: rlhf/Dialogue-v0, kwargs: {loud: 1}}", "loud"),
        ("ppo.environment.id=CartPole-v1", "text"),
        ("ppo.rewards.judge={path: ./nowhere}", "nowhere"),
        ("sft.max_tokens=2048", "the model reads 512"),
    ],
)
def test_what_a_late_stage_cannot_use_is_named(override, message, check):
    environment = ["ppo.data=null", "evaluate=null"] if "environment" in override else []
    with pytest.raises(UserError, match=message):
        check(override, *environment)


def test_a_backbone_without_a_sequence_classifier_is_refused(check):
    MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=300).save_pretrained("mamba")
    check()["sft"].tokenizer.save_pretrained("mamba")
    with pytest.raises(ModelError, match=r"reward.model: transformers has no sequence classifier of the family mamba"):
        check("reward.model={path: mamba}")


def test_a_model_that_is_not_there_is_named(check):
    with pytest.raises(ModelError, match="no Python package 'nowhere_gguf'"):
        check("reward.model={path: package:nowhere_gguf}")
