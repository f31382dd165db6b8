"""A script for TRL's PPOTrainer runs after changing one import; functions are accepted where TRL wants a module."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny_pipeline import ROOT
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from rlhf.config.model import TokenizerConfig
from rlhf.models.scratch import train_tokenizer
from rlhf.trl import PPOConfig, PPOTrainer

SCRIPT = Path(__file__).with_name("trl_script.py")
THEIRS, OURS = "from trl.experimental.ppo import", "from rlhf.trl import"
OLD_TRL = ROOT / ".trl-1.12"  # the last TRL that has a PPOTrainer
needs_old_trl = pytest.mark.skipif(not OLD_TRL.is_dir(), reason="TRL 1.12.0 is not there: `make .trl-1.12` fetches it")
PROMPTS = [f"Where is parcel number {i}, please?" for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models of one vocabulary, with room for the script's own pad token, and prompts."""
    folder = tmp_path_factory.mktemp("drop_in")
    tokenizer = train_tokenizer(PROMPTS, TokenizerConfig(vocab_size=290), 512)
    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=1,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    for name, family in (("sft", LlamaForCausalLM), ("reward", LlamaForSequenceClassification)):
        family(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "data").mkdir()
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (folder / "data" / "train.jsonl").write_text(rows, "utf-8")
    return folder


def run_script(folder: Path, text: str, output: Path, *options: str, old_trl: bool = False) -> str:
    """Run the script as a program of its own, with the installed TRL or with 1.12.0; it must succeed."""
    script = output.with_suffix(".py")
    script.write_text(text, "utf-8")
    arguments = {
        "dataset_name": folder / "data", "dataset_train_split": "train", "model_name_or_path": folder / "sft",
        "sft_model_path": folder / "sft", "reward_model_path": folder / "reward", "output_dir": output,
        "learning_rate": 1e-2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "total_episodes": 16, "num_ppo_epochs": 2, "num_mini_batches": 2, "response_length": 8, "stop_token": "eos",
        "missing_eos_penalty": 1.0, "num_sample_generations": 1, "report_to": "none",
    }  # fmt: skip
    line = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{OLD_TRL}" if old_trl else str(ROOT),
        "HF_HOME": str(output.parent / "cache"), "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(script), *line, "--use_cpu", *options],
        env=environment, cwd=output.parent, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def moved(before: Path, after: Path) -> bool:
    old, new = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (before, after))
    assert set(old) == set(new)
    assert all(bool(torch.isfinite(weight).all()) for weight in new.values())
    return any(not torch.equal(old[name], new[name]) for name in old)


def test_one_line_differs():
    text = SCRIPT.read_text("utf-8")
    lines = list(zip(text.splitlines(), text.replace(THEIRS, OURS).splitlines(), strict=True))
    assert sum(theirs != ours for theirs, ours in lines) == 1
    assert text.count("rlhf") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "old_trl"),
    [
        pytest.param(THEIRS, True, marks=needs_old_trl, id="trl-1.12"),
        pytest.param(OURS, True, marks=needs_old_trl, id="ours-beside-trl-1.12"),
        pytest.param(OURS, False, id="ours-beside-the-installed-trl"),
    ],
)
def test_the_script_runs_with_trl_and_with_one_import_changed(folder: Path, tmp_path: Path, line: str, old_trl: bool):
    output = tmp_path / "trained"
    printed = run_script(folder, SCRIPT.read_text("utf-8").replace(THEIRS, line), output, old_trl=old_trl)
    assert moved(folder / "sft", output)
    assert json.loads((output / "checkpoint-2" / "trainer_state.json").read_text("utf-8"))["global_step"] == 2
    assert len(AutoTokenizer.from_pretrained(output)) == 291  # with the script's own pad token
    assert (output / "critic").is_dir() == (line == OURS)  # TRL's trainer leaves the critic behind
    if line == OURS:
        assert printed.count(PROMPTS[-1]) == 2  # once during training, once at the end
        assert moved_critic(folder / "reward", output / "critic")


def moved_critic(before: Path, after: Path) -> bool:
    old, new = (load_file(path / "model.safetensors") for path in (before, after))
    return any(not torch.equal(old[name], new[name]) for name in old)


@pytest.mark.slow
def test_the_scripts_adapters_are_trained_and_saved_alone(folder: Path, tmp_path: Path):
    output = tmp_path / "adapters"
    run_script(folder, SCRIPT.read_text("utf-8").replace(THEIRS, OURS), output, "--use_peft", "--lora_r", "2")
    adapters = load_file(output / "adapter_model.safetensors")
    assert adapters
    assert all("lora_" in name for name in adapters)
    assert any(weight.any() for name, weight in adapters.items() if "lora_B" in name)  # they begin as zeros
    assert not (output / "model.safetensors").exists()


def shout(prompts, completions, completion_ids, **columns):
    """Counts tokens; sees texts, token ids and the rows' other columns."""
    assert all(isinstance(text, str) for text in [*prompts, *completions])
    assert set(columns) == {"lengths"}
    assert all("parcel" in prompt for prompt in prompts)
    return [float(len(ids)) for ids in completion_ids]


async def constant(prompts, completions, **_):
    return [-1.5] * len(completions)


def train(folder: Path, tmp_path: Path, reward, *, after=lambda trainer: None, **options):
    """Two iterations through the constructor that scripts call; returns what came of each."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft", padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    ids = tokenizer(PROMPTS)["input_ids"]
    rows = Dataset.from_dict({"input_ids": ids, "lengths": [len(row) for row in ids]})
    peft_config, eval_dataset = options.pop("peft_config", None), options.pop("eval_dataset", None)
    config = PPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=8, total_episodes=16, num_ppo_epochs=1,
        response_length=6, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
        logging_steps=100, compile_kernels=False, **options,
    )  # fmt: skip
    seen: list = []
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(folder / "sft"),
        ref_model=None if peft_config else AutoModelForCausalLM.from_pretrained(folder / "sft"),
        reward_model=reward,
        value_model=AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        peft_config=peft_config,
        on_iteration=seen.append,
    )
    trainer.train()
    after(trainer)
    assert [iteration.number for iteration in seen] == [0, 1]
    return seen


@pytest.fixture
def reward_model(folder: Path):
    return AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1)


def read_by(model, token_ids) -> float:
    """The score in the words of transformers' own class: its logit at the last token."""
    with torch.no_grad():
        return float(model.score(model.model(torch.tensor([token_ids])).last_hidden_state[0, -1]))


def test_a_function_takes_the_place_of_the_reward_model(folder: Path, tmp_path: Path):
    for iteration in train(folder, tmp_path, shout):
        lengths = [episode.response_length for episode in iteration.episodes]
        assert [episode.score for episode in iteration.episodes] == lengths
        assert iteration.metrics["ppo/score"] == pytest.approx(sum(lengths) / len(lengths))


def test_functions_with_weights(folder: Path, tmp_path: Path):
    for iteration in train(folder, tmp_path, [shout, constant], reward_weights=(0.5, 2.0)):
        for episode in iteration.episodes:
            assert episode.score == pytest.approx(0.5 * episode.response_length - 3.0)
        assert iteration.metrics["ppo/components/constant"] == -1.5


def test_functions_without_weights_count_one_each(folder: Path, tmp_path: Path):
    for iteration in train(folder, tmp_path, [shout, constant]):
        assert all(e.score == pytest.approx(e.response_length - 1.5) for e in iteration.episodes)


def test_a_module_and_a_function_together(folder: Path, tmp_path: Path, reward_model):
    for iteration in train(folder, tmp_path, [reward_model, shout], reward_weights=(3.0, -0.1)):
        for episode in iteration.episodes:
            expected = 3 * read_by(reward_model, episode.token_ids) - 0.1 * episode.response_length
            assert episode.score == pytest.approx(expected, abs=1e-4)


def test_a_module_alone_is_read_as_trl_reads_it(folder: Path, tmp_path: Path, reward_model):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    for iteration in train(folder, tmp_path, reward_model, peft_config=config):
        assert len({episode.score for episode in iteration.episodes}) > 1
        for episode in iteration.episodes:
            assert episode.score == pytest.approx(read_by(reward_model, episode.token_ids), abs=1e-4)


@pytest.mark.parametrize(("generations", "tables"), [(0, 0), (1, 1), (2, 2), (99, 2)])
def test_responses_are_shown_as_often_as_asked_for(folder: Path, tmp_path: Path, capsys, generations, tables):
    rows = Dataset.from_dict({"input_ids": AutoTokenizer.from_pretrained(folder / "sft")(PROMPTS[:2])["input_ids"]})
    train(folder, tmp_path, constant, eval_dataset=rows, num_sample_generations=generations)
    assert capsys.readouterr().out.count("response") == tables


def test_without_an_evaluation_set_no_responses_are_shown(folder: Path, tmp_path: Path, capsys):
    train(folder, tmp_path, constant, after=lambda trainer: trainer.generate_completions())
    assert "response" not in capsys.readouterr().out


def test_a_module_reads_as_many_rows_at_once_as_the_rollout(folder: Path, tmp_path: Path, reward_model):
    sizes: list[int] = []
    reward_model.model.register_forward_hook(lambda *arguments: sizes.append(len(arguments[2].last_hidden_state)))
    train(folder, tmp_path, reward_model, local_rollout_forward_batch_size=3)
    assert sizes == 2 * [3, 3, 2]


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="reward_weights has 1 entries for 2 rewards"):
        train(folder, tmp_path, [shout, constant], reward_weights=(1.0,))


def test_both_packages_name_what_trl_names_and_what_loads_a_critic():
    import rlhf.ppo
    import rlhf.trl

    assert set(rlhf.trl.__all__) == set(rlhf.ppo.__all__) == {"PPOConfig", "PPOTrainer", "load_critic"}
    for name in rlhf.ppo.__all__:
        assert callable(getattr(rlhf.trl, name))
        assert getattr(rlhf.ppo, name) is getattr(rlhf.trl, name)
    with pytest.raises(AttributeError, match="has no attribute 'PPOTrianer'"):
        _ = rlhf.ppo.PPOTrianer


@pytest.mark.slow
def test_the_engine_does_not_load_the_drop_in():
    code = "import sys, rlhf.ppo.trainer; sys.exit(any(name.startswith('rlhf.trl') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
