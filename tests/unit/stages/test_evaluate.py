"""The evaluate stage on tiny random policies: what it writes, what it logs, and what it refuses."""

import json
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from ppo_helpers import runtime
from tiny_run import PROMPTS, run_config, save_prompts, save_run

from envs import UnicodeText
from envs.tasks.dialogue import DialogueEnv
from reward_models.scalar import ScalarRewardModel
from rlhf.data.environment_rows import split_rows
from rlhf.data.split import split_of
from rlhf.episodes.plan import plan
from rlhf.errors import DataError, StageError
from rlhf.evaluation.text_metrics import distinct_n
from rlhf.generation.noise import uniforms
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.stages import evaluate
from rlhf.tracking.jsonl import read_series
from rlhf.tracking.tracker import Tracker


@pytest.fixture
def data(tmp_path):
    return save_prompts(tmp_path / "prompts.jsonl")


@pytest.fixture
def folder(tmp_path):
    return save_run(tmp_path / "run")


def run(config, folder, on=None):
    with Tracker.open(folder.root, config.tracking, {}, "evaluate") as tracker:
        returned = evaluate.run(config, folder, tracker, on or runtime())
    return returned, json.loads(folder.evaluate.read_text("utf-8"))


def sides(result, name):
    return [[row[policy][name] for row in result["responses"]] for policy in ("before", "after")]


def test_scores_and_components_are_those_of_the_reward_model(data, folder):
    returned, result = run(run_config(data), folder)
    assert (result["prompts"], result["policies"]) == (len(PROMPTS), ["before", "after"])
    model = ScalarRewardModel.from_folder(folder.reward)
    for policy in ("before", "after"):
        said = [row[policy]["messages"][-1]["content"] for row in result["responses"]]
        scores = model.score([row["prompt"] for row in result["responses"]], said)
        assert result["metrics"]["score"][policy] == pytest.approx(scores.mean(), abs=1e-6)
        assert result["metrics"]["components/reward_model"][policy] == pytest.approx(scores.mean(), abs=1e-6)
        assert result["metrics"]["distinct_2"][policy] == pytest.approx(distinct_n(said))
    score = result["metrics"]["score"]
    assert score["difference"] == pytest.approx(score["after"] - score["before"])
    assert score["interval"][0] < score["difference"] < score["interval"][1]
    before, after = (np.array(side) for side in sides(result, "score"))
    assert result["win_rate"]["value"] == pytest.approx(np.mean((after > before) + 0.5 * (after == before)))
    assert returned == {"prompts": len(PROMPTS), "score": score, "win_rate": result["win_rate"]}


def test_kl_and_perplexity_by_hand(data, folder, monkeypatch):
    answers = []
    original = evaluate.compare
    monkeypatch.setattr(evaluate, "compare", lambda *given: answers.extend(given[:2]) or original(*given))
    config = run_config(data, evaluate={"data": {"path": str(data)}, "temperature": 0.8})
    _, result = run(config, folder)
    tokenizer = load_tokenizer(config.model, folder=folder.ppo)
    stages = {"before": "sft", "after": "ppo"}
    policies = {
        name: load_policy(config.model, tokenizer, folder=folder.output_of(stage)) for name, stage in stages.items()
    }

    def logprob(policy, episode, temperature):
        with torch.no_grad():
            logits = policies[policy](input_ids=torch.tensor([episode.token_ids])).logits[0].double() / temperature
        start = len(episode.token_ids) - episode.response_length
        chosen = torch.tensor(episode.token_ids[start:])
        return logits.log_softmax(-1)[start - 1 : -1].gather(-1, chosen[:, None]).sum().item()

    metrics = result["metrics"]
    kl = [logprob("after", episode, 0.8) - logprob("before", episode, 0.8) for episode in answers[1].episodes]
    assert metrics["kl"]["before"] == 0.0
    assert metrics["kl"]["after"] == metrics["kl"]["difference"] == pytest.approx(np.mean(kl), rel=1e-5)
    for said, name in zip(answers, ("before", "after"), strict=True):
        tokens = sum(episode.response_length for episode in said.episodes)
        surprise = -sum(logprob("before", episode, 1.0) for episode in said.episodes)
        assert metrics["perplexity"][name] == pytest.approx(math.exp(surprise / tokens), rel=1e-5)
        assert metrics["response_tokens"][name] == pytest.approx(tokens / len(PROMPTS))
    assert metrics["kl_per_token"]["after"] == pytest.approx(sum(kl) / sum(sides(result, "tokens")[1]), rel=1e-5)


def test_the_same_policy_twice_differs_by_exactly_nothing(tmp_path, data):
    folder = save_run(tmp_path / "same", ppo_seed=0)
    _, result = run(run_config(data), folder)
    for row in result["responses"]:
        assert row["before"] == row["after"]
    for name, entry in result["metrics"].items():
        assert entry["difference"] == 0.0, name
        assert entry["interval"] in ([0.0, 0.0], None), name
    assert result["metrics"]["kl"]["after"] == 0.0
    assert result["win_rate"] == {"value": 0.5, "interval": [0.5, 0.5]}


def test_both_policies_get_the_same_random_numbers(data, folder, monkeypatch):
    keys = []
    monkeypatch.setattr("rlhf.generation.sampler.uniforms", lambda key, count: keys.append(key) or uniforms(key, count))
    run(run_config(data, evaluate={"data": {"path": str(data)}, "samples_per_prompt": 2}), folder)
    assert keys[: len(keys) // 2] == keys[len(keys) // 2 :]
    assert len(set(keys)) == 2 * len(PROMPTS)


def test_same_seed_same_file_and_another_seed_another(data, folder):
    run(run_config(data), folder)
    first = folder.evaluate.read_bytes()
    run(run_config(data), folder)
    assert folder.evaluate.read_bytes() == first
    run(run_config(data, seed=1), folder)
    assert folder.evaluate.read_bytes() != first


def test_samples_are_the_first_prompts_and_belong_together(data, folder):
    _, result = run(
        run_config(data, evaluate={"data": {"path": str(data)}, "samples_per_prompt": 2, "table_rows": 4}), folder
    )
    assert len(result["responses"]) == 2 * len(PROMPTS)
    firsts = [row for row in result["responses"] if row["sample_index"] == 0][:4]
    for sample, row in zip(result["samples"], firsts, strict=True):
        assert sample["prompt"] == row["prompt"]
        assert sample["after"] == row["after"]["messages"][-1]["content"]
        assert sample["before_score"] == row["before"]["score"]


def test_prompts_default_to_the_test_split_of_ppo(data, folder):
    half = {"path": str(data), "test_fraction": 0.5}
    expected = {prompt for prompt in PROMPTS if split_of(prompt, 0.1, 0.5) == "test"}
    assert 0 < len(expected) < len(PROMPTS)
    ppo = {"data": half, "rewards": {"reward_model": {}}, "rollout": {"max_response_tokens": 8}}
    _, result = run(run_config(data, ppo=ppo, evaluate={"data": None}), folder)
    assert {row["prompt"] for row in result["responses"]} == expected
    _, own = run(run_config(data, evaluate={"data": half}), folder)
    assert {row["prompt"] for row in own["responses"]} == expected


def test_prompts_are_asked_once_and_at_most_as_many_as_configured(tmp_path, folder):
    twice = save_prompts(tmp_path / "twice.jsonl", [*PROMPTS, *PROMPTS])
    _, result = run(run_config(twice), folder)
    assert result["prompts"] == len(PROMPTS)
    _, result = run(run_config(twice, evaluate={"data": {"path": str(twice)}, "max_prompts": 4}), folder)
    assert (result["prompts"], len(result["responses"])) == (4, 4)


def test_columns_reach_reward_functions(data, folder, tmp_path):
    file = tmp_path / "topic.py"
    file.write_text("def topics(completions, topic, **kwargs):\n    return [float(len(t)) for t in topic]\n")
    ppo = {"data": {"path": str(data)}, "rewards": {"topic": {"function": f"{file}:topics"}}}
    _, result = run(run_config(data, ppo=ppo), folder)
    assert result["metrics"]["components/topic"]["before"] == len("parcel")
    assert result["win_rate"]["value"] == 0.5


def test_a_failing_reward_is_counted_and_leaves_its_samples_out(data, folder, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def broken(completions, **kwargs):\n    raise ValueError('no')\n")
    ppo = {"data": {"path": str(data)}, "rewards": {"broken": {"function": f"{file}:broken", "on_error": "skip"}}}
    _, result = run(run_config(data, ppo=ppo), folder)
    assert result["failures"] == {"broken": 2 * len(PROMPTS)}
    assert result["metrics"]["score"] == {"before": None, "after": None, "difference": None, "interval": None}
    assert result["win_rate"] == {"value": None, "interval": None}
    assert result["metrics"]["kl"]["after"] is not None


def of_environment(data, id="rlhf/Dialogue-v0", environment=None, **evaluate):
    """A configuration of an environment that brings its prompts and rewards."""
    ppo = {"data": None, "rewards": {}, "environment": {"id": id, "max_turns": 2, **(environment or {})}}
    ppo["rollout"] = {"max_response_tokens": 4, "max_prompt_tokens": 256}
    return run_config(data, ppo=ppo, evaluate={"data": None, **evaluate})


def test_an_environment_with_rewards_of_its_own_is_played(data, folder):
    _, result = run(of_environment(data, max_prompts=3), folder)
    assert (result["prompts"], result["asked"]) == (3, "held-out rows of rlhf/Dialogue-v0")
    scores = sides(result, "score")[0]
    assert all(score is not None and score < 0 for score in scores)  # nonsense meets no need of a customer
    assert len(result["responses"][0]["before"]["messages"]) >= 4  # two turns
    assert [message["role"] for message in result["samples"][0]["before"]][:2] == ["assistant", "user"]


def test_bfloat16_samples_from_a_rounded_copy_and_asks_the_masters(tmp_path, data, monkeypatch):
    """Log-ratios come from one code on one layout, so those of equal policies are exactly 0 in bfloat16 too."""
    asked, original = [], evaluate.response_logprobs
    monkeypatch.setattr(
        evaluate,
        "response_logprobs",
        lambda policy, *rest, **named: asked.append(policy) or original(policy, *rest, **named),
    )
    folder = save_run(tmp_path / "same", ppo_seed=0)
    _, result = run(run_config(data, model={"dtype": "bfloat16"}), folder)
    assert {policy.runtime.compute_dtype for policy in asked} == {torch.bfloat16}
    assert {weight.dtype for policy in asked for weight in policy.model.parameters()} == {torch.float32}
    assert result["metrics"]["kl"]["after"] == 0.0


def test_what_is_logged(data, folder):
    _, result = run(run_config(data), folder)
    series = read_series(folder.root)
    assert series["evaluate/after/score"] == [(0, pytest.approx(result["metrics"]["score"]["after"]))]
    assert series["evaluate/difference/kl"] == [(0, pytest.approx(result["metrics"]["kl"]["difference"]))]
    assert series["evaluate/win_rate"] == [(0, pytest.approx(result["win_rate"]["value"]))]
    assert series["evaluate/prompts"] == [(0, len(PROMPTS))]


def test_missing_stages_are_named(tmp_path, data):
    from rlhf.files.run_folder import RunFolder

    folder = RunFolder(tmp_path / "run")
    with pytest.raises(StageError, match="run `rlhf sft` first"):
        run(run_config(data), folder)
    save_run(folder.root)
    (folder.ppo / "config.json").unlink()
    with pytest.raises(StageError, match="run `rlhf ppo` first"):
        run(run_config(data), folder)


def test_a_prompt_that_is_too_long_is_an_error(tmp_path, folder):
    data = save_prompts(tmp_path / "long.jsonl", [*PROMPTS, "Hello? " * 100])
    with pytest.raises(DataError, match="tokens"):
        run(run_config(data), folder)
    assert not folder.evaluate.exists()


def test_an_environment_without_rows_is_asked_for_seeds_that_training_does_not_use(data, folder, monkeypatch):
    seeds = []

    class Seeded(gymnasium.Env):
        observation_space, action_space = UnicodeText(), UnicodeText()

        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return f"Where is parcel number {seed % 10}?", {}

        def step(self, action):
            return "", float(len(action)), True, False, {}

    monkeypatch.setitem(gymnasium.registry, "test/Seeded-v0", EnvSpec("test/Seeded-v0", Seeded))
    _, result = run(of_environment(data, "test/Seeded-v0", max_prompts=4), folder)
    assert (result["prompts"], result["asked"]) == (4, "held-out seeds of test/Seeded-v0")
    assert seeds[-8:-4] == seeds[-4:]  # both policies, behind the rehearsal
    trained = {start.seed for iteration in range(50) for start in plan(None, 64, 1, iteration, 0)}
    assert trained.isdisjoint(seeds)
    assert run(of_environment(data, "test/Seeded-v0"), folder)[1]["prompts"] == 64


def test_all_rows_are_asked_where_none_is_held_out(data, folder):
    kept = of_environment(data, environment={"test_fraction": 0.0}, max_prompts=3)
    _, result = run(kept, folder)
    assert result["asked"] == "rows of rlhf/Dialogue-v0 that training draws from, too"


def test_an_episode_that_fails_leaves_its_prompt_out(data, folder, monkeypatch):
    """The other prompts have all their numbers, and the file is valid JSON."""
    original = DialogueEnv.reply

    def reply(self, response):
        if self._index == split_rows(24, 0.2)[1][0]:
            raise OSError("the service is down")
        return original(self, response)

    monkeypatch.setattr(DialogueEnv, "reply", reply)
    _, result = run(of_environment(data), folder)
    assert result["failed_episodes"] == {"before": 1, "after": 1}
    scores = sides(result, "score")[1]
    assert [score is None for score in scores] == [True, False, False, False, False]
    assert result["metrics"]["score"]["after"] == pytest.approx(np.mean(scores[1:]), abs=1e-12)
    lost = result["responses"][0]["after"]
    assert (lost["kl"], lost["before_logprob"]) == (None, None)
    tokens = sides(result, "tokens")[1]
    assert result["metrics"]["response_tokens"]["after"] == pytest.approx(np.mean(tokens[1:]), abs=1e-12)
    assert result["metrics"]["perplexity"]["after"] > 1


def test_the_other_processes_write_nothing(data, folder, monkeypatch):
    waited = []

    def first_process_writes():
        waited.append(True)
        folder.evaluate.write_text(json.dumps({"prompts": 1, "metrics": {"score": {}}, "win_rate": {}}))

    monkeypatch.setattr(evaluate, "barrier", first_process_writes)
    monkeypatch.setattr(evaluate, "load_policy", None)
    returned, _ = run(run_config(data), folder, replace(runtime(), rank=1, world_size=2))
    assert waited == [True]
    assert returned == {"prompts": 1, "score": {}, "win_rate": {}}
