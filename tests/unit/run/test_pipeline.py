"""The pipeline with stages that only write a file: what runs, what is skipped, what a failure costs."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rlhf.run.pipeline
from rlhf.config.load import load_config
from rlhf.config.schema import Config
from rlhf.errors import DataError, StageError
from rlhf.files.run_folder import STAGES, RunFolder
from rlhf.run.manifest import Manifest
from rlhf.run.pipeline import Step, folder_of, run_pipeline

CONFIG = """\
name: fake
model: {path: org/base}
sft: {data: sft.jsonl}
reward: {data: pairs.jsonl}
ppo:
  data: {path: prompts.jsonl, test_fraction: 0.1}
  rewards:
    reward_model: {}
    own: {function: "rewards.py:polite"}
evaluate: {}
tracking: {wandb: {mode: disabled}, tensorboard: false, report: false}
"""
SCRATCH = "model={architecture: {hidden_size: 8, heads: 2}}"
EVALUATION = {
    "policies": ["before", "after"],
    "prompts": 7,
    "metrics": {"score": {"before": 0.1, "after": 0.35, "difference": 0.25, "interval": [0.2, 0.3]}},
    "win_rate": {"value": 0.75, "interval": [0.6, 0.9]},
}


class Stages:
    """Stands in for the four stages; remembers what ran and what each saw."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: str | None = None
        self.unusable: str | None = None
        self.prepared: list[list[str]] = []
        self.draws: dict[str, float] = {}
        self.folders: dict[str, RunFolder] = {}
        self.results: dict = {"loss": 0.5}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        functions = {
            name: lambda config, folder, tracker, runtime, inputs, name=name: self.run(name, folder, tracker, inputs)
            for name in STAGES
        }
        monkeypatch.setattr(rlhf.run.pipeline, "stage_functions", lambda: functions)
        monkeypatch.setattr(rlhf.run.pipeline, "prepare_stages", self.prepare)

    def prepare(self, config, stages: list[str]) -> dict:
        self.prepared.append(list(stages))
        if self.unusable in stages:
            raise DataError(f"{self.unusable} cannot use its data")
        return {stage: f"inputs of {stage}" for stage in stages}

    def run(self, name: str, folder: RunFolder, tracker, inputs: str) -> dict:
        assert inputs == f"inputs of {name}"
        self.ran.append(name)
        self.folders[name] = folder
        self.draws[name] = random.random()
        output = folder.output_of(name)
        if name == "evaluate":
            output.write_text(json.dumps(EVALUATION), encoding="utf-8")
        else:
            output.mkdir()
            (output / "model.txt").write_text(f"{name} {len(self.ran)}", encoding="utf-8")
            (output / "checkpoint-1").mkdir()
            (output / "checkpoint-1" / "state.txt").touch()
        if name == self.fails:
            raise DataError(f"{name} fails")
        return dict(self.results)

    def take(self) -> list[str]:
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    fake = Stages()
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the pipeline in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("sft.jsonl", "pairs.jsonl", "prompts.jsonl"):
        Path(name).write_text(f'{{"prompt": "{name}"}}\n', encoding="utf-8")
    Path("rewards.py").write_text("def polite(completions, **columns): ...\n", encoding="utf-8")
    Path("my.yaml").write_text(CONFIG, encoding="utf-8")

    def pipeline(*overrides: str, only: str | None = None) -> RunFolder:
        loaded = load_config(Path("my.yaml"), overrides)
        run_pipeline(loaded, only)
        return folder_of(loaded.config)

    return pipeline


def test_all_stages_run_in_order_and_the_second_run_runs_none(run, stages: Stages, capsys: pytest.CaptureFixture):
    run()
    assert stages.take() == ["sft", "reward", "ppo", "evaluate"]
    capsys.readouterr()
    run()
    assert stages.take() == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines[:4]] == [f"{stage}: skipped" for stage in STAGES]


def test_only_stages_that_run_are_prepared_and_all_of_them_before_the_first(run, stages: Stages):
    run()
    run("evaluate.max_prompts=3")
    run("evaluate.max_prompts=3")
    assert stages.prepared == [list(STAGES), ["evaluate"]]


def test_a_mistake_of_the_last_stage_costs_no_training_and_leaves_no_folder(run, stages: Stages):
    stages.unusable = "evaluate"
    with pytest.raises(DataError, match="evaluate cannot use its data"):
        run()
    assert stages.take() == []
    assert not Path("runs").exists()


# What is changed, and exactly which stages follow from it.
CHANGES = {
    "seed": (["seed=1"], ["sft", "reward", "ppo", "evaluate"]),
    "policy": (["model.path=org/other"], ["sft", "reward", "ppo", "evaluate"]),
    "sft key": (["sft.learning_rate=1e-3"], ["sft", "reward", "ppo", "evaluate"]),
    "sft data key": (["sft.data.max_rows=5"], ["sft", "reward", "ppo", "evaluate"]),
    "reward key": (["reward.epochs=2"], ["reward", "ppo", "evaluate"]),
    "ppo key": (["ppo.kl.coefficient=0.1"], ["ppo", "evaluate"]),
    "reward function": (["ppo.rewards.own.function=repetition"], ["ppo", "evaluate"]),
    "evaluate key": (["evaluate.max_prompts=3"], ["evaluate"]),
    "tracking": (["tracking.rollout_rows_per_table=8"], []),
    "processes": (["distributed.zero=2", "sft.batch_size=8"], []),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_key_runs_exactly_what_depends_on_it(change: str, run, stages: Stages):
    overrides, expected = CHANGES[change]
    run()
    stages.take()
    run(*overrides)
    assert stages.take() == expected


CHANGED_FILES = {
    "sft.jsonl": ["sft", "reward", "ppo", "evaluate"],
    "pairs.jsonl": ["reward", "ppo", "evaluate"],
    "prompts.jsonl": ["ppo", "evaluate"],
    "rewards.py": ["ppo", "evaluate"],
}


@pytest.mark.parametrize("name", CHANGED_FILES)
def test_a_changed_file_runs_exactly_what_depends_on_it(name: str, run, stages: Stages, capsys: pytest.CaptureFixture):
    run()
    stages.take()
    with Path(name).open("a", encoding="utf-8") as file:
        file.write("\n")
    capsys.readouterr()
    run()
    expected = CHANGED_FILES[name]
    assert stages.take() == expected
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{expected[0]}:"))
    what = "source of reward function rewards.py:polite" if name == "rewards.py" else f"data {name}"
    assert told == f"{expected[0]}: {what} changed"


def test_data_that_moved_is_the_same_data(run, stages: Stages):
    run()
    stages.take()
    Path("pairs.jsonl").rename("moved.jsonl")
    run("reward.data.path=moved.jsonl")
    assert stages.take() == []


def test_a_tokenizer_from_scratch_depends_on_the_data_of_all_stages(run, stages: Stages):
    run(SCRATCH)
    stages.take()
    Path("prompts.jsonl").write_text('{"prompt": "other"}\n', encoding="utf-8")
    run(SCRATCH)
    assert stages.take() == ["sft", "reward", "ppo", "evaluate"]
    run(SCRATCH, "ppo.learning_rate=1e-3")
    assert stages.take() == ["ppo", "evaluate"]


def test_ppo_without_the_reward_model_does_not_depend_on_its_stage(run, stages: Stages):
    alone = "ppo.rewards={own: {function: repetition}}"
    run(alone)
    stages.take()
    run(alone, "reward.epochs=2")
    assert stages.take() == ["reward"]


def test_a_run_without_sft_depends_on_the_model_in_each_stage(run, stages: Stages):
    run("sft=null")
    assert stages.take() == ["reward", "ppo", "evaluate"]
    run("sft=null", "model.path=org/other")
    assert stages.take() == ["reward", "ppo", "evaluate"]


def test_a_local_model_counts_by_content(run, stages: Stages):
    Path("base").mkdir()
    weights = Path("base/model.safetensors")
    weights.write_bytes(b"first")
    run("model.path=base")
    stages.take()
    run("model.path=base")
    assert stages.take() == []
    weights.write_bytes(b"other")  # of the same size
    run("model.path=base")
    assert stages.take() == ["sft", "reward", "ppo", "evaluate"]


def test_the_reason_names_what_changed_and_how(run, stages: Stages, capsys: pytest.CaptureFixture):
    run()
    capsys.readouterr()
    run("ppo.learning_rate=2e-5", "ppo.epochs=2")
    lines = capsys.readouterr().out.splitlines()
    assert "ppo: ppo.epochs changed (4 -> 2); ppo.learning_rate changed (1e-05 -> 2e-05)" in lines
    assert "evaluate: stage ppo changed" in lines
    run("ppo.learning_rate=2e-5", "ppo.epochs=2", "ppo.rewards.more.function=repetition", "evaluate.table_rows=3")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ppo: ppo.rewards.more.function is new; ") and line.endswith(" more") for line in lines)


def test_a_missing_output_runs_its_stage_and_what_reads_it(run, stages: Stages, capsys: pytest.CaptureFixture):
    folder = run()
    stages.take()
    (folder.ppo / "model.txt").unlink()
    capsys.readouterr()
    run()
    assert stages.take() == ["ppo", "evaluate"]
    lines = capsys.readouterr().out.splitlines()
    assert "ppo: its output ppo/model.txt is missing or was changed" in lines
    assert "evaluate: stage ppo runs again" in lines


def test_checkpoints_may_be_removed(run, stages: Stages):
    folder = run()
    stages.take()
    (folder.ppo / "checkpoint-1" / "state.txt").unlink()
    run()
    assert stages.take() == []


def test_a_failing_stage_costs_nothing_that_was_finished(run, stages: Stages):
    folder = run()
    stages.take()
    before = json.loads(folder.manifest.read_text(encoding="utf-8"))
    stages.fails = "ppo"
    with pytest.raises(DataError, match="ppo fails"):
        run("reward.epochs=2")
    after = json.loads(folder.manifest.read_text(encoding="utf-8"))
    assert after["stages"]["sft"] == before["stages"]["sft"]
    assert after["stages"]["reward"] != before["stages"]["reward"]
    assert after["stages"]["ppo"] == before["stages"]["ppo"]
    assert (folder.ppo / "model.txt").read_text(encoding="utf-8") == "ppo 3"  # of the first run
    stages.take()
    stages.fails = None
    run("reward.epochs=2")
    assert stages.take() == ["ppo", "evaluate"]
    assert not list(folder.root.glob("*.unfinished"))


def test_a_crash_while_the_output_is_replaced_is_noticed(run, stages: Stages, monkeypatch: pytest.MonkeyPatch):
    run()
    stages.take()
    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("reward.epochs=2")
    stages.take()
    run()  # the old configuration again: its reward model is not there any more
    assert stages.take() == ["reward", "ppo", "evaluate"]


def test_a_stage_reads_finished_folders_and_writes_beside_its_own(run, stages: Stages):
    folder = run()
    seen = stages.folders["ppo"]
    assert seen.sft == folder.root / "sft"
    assert seen.ppo == folder.root / "ppo.unfinished"
    assert stages.folders["evaluate"].evaluate == folder.root / "evaluate.json.unfinished"
    assert (folder.ppo / "model.txt").is_file()
    assert not seen.ppo.exists()


@pytest.mark.parametrize("ending", [DataError("no"), KeyboardInterrupt()])
def test_a_run_that_fails_or_is_interrupted_has_its_report(run, stages: Stages, monkeypatch, ending: BaseException):
    def end(*_):
        raise ending

    monkeypatch.setattr(
        stages, "run", lambda name, *rest: end() if name == "reward" else Stages.run(stages, name, *rest)
    )
    with pytest.raises(type(ending)):
        run("tracking.report=true")
    page = Path("runs/fake/report.html").read_text("utf-8")
    assert "This run is not complete: the stage Reward model has not started." in page


def test_what_a_failed_attempt_left_is_removed(run, stages: Stages):
    leftover = Path("runs/fake/sft.unfinished")
    leftover.mkdir(parents=True)
    (leftover / "old.txt").touch()
    folder = run()
    assert not (folder.sft / "old.txt").exists()


def test_each_stage_begins_with_the_same_random_numbers(run, stages: Stages):
    run()
    together = dict(stages.draws)
    assert len(set(together.values())) == 1
    run("ppo.epochs=2", only="ppo")
    assert stages.draws["ppo"] == together["ppo"]
    run("seed=1")
    assert stages.draws["ppo"] != together["ppo"]


def test_a_stage_alone(run, stages: Stages):
    run(only="sft")
    run(only="reward")
    assert stages.take() == ["sft", "reward"]
    run(only="reward")
    assert stages.take() == []


def test_a_stage_alone_says_what_is_missing(run, stages: Stages):
    with pytest.raises(StageError) as caught:
        run(only="ppo")
    assert str(caught.value) == (
        "ppo reads the result of stage sft, which has not finished (in runs/fake). Run `rlhf sft CONFIG` first, or "
        "`rlhf run CONFIG` for all stages."
    )
    run(only="sft")
    with pytest.raises(StageError, match="ppo reads the result of stage reward, which has not finished"):
        run(only="ppo")
    assert stages.take() == ["sft"]


def test_a_stage_alone_says_what_is_out_of_date(run, stages: Stages):
    run()
    with pytest.raises(
        StageError, match=r"stage reward, which is out of date: reward\.epochs changed \(1\.0 -> 2\.0\)"
    ):
        run("reward.epochs=2", only="ppo")


def test_a_stage_that_is_not_configured(run):
    with pytest.raises(StageError, match="The config has no section evaluate: add it"):
        run("evaluate=null", only="evaluate")
    with pytest.raises(StageError, match="no section of sft, reward, ppo, evaluate"):
        run("sft=null", "reward=null", "ppo=null", "evaluate=null")


def test_missing_data_of_the_last_stage_is_found_before_the_first_runs(run, stages: Stages):
    Path("prompts.jsonl").unlink()
    with pytest.raises(DataError, match=r"prompts\.jsonl: no such file"):
        run()
    assert stages.take() == []


def test_the_manifest_remembers_inputs_outputs_and_versions(run, stages: Stages):
    stages.results = {"loss": np.float32(0.5), "worst": float("nan"), "path": Path("x"), "pair": (1, np.int64(2))}
    folder = run("seed=5")
    record = json.loads(folder.manifest.read_text(encoding="utf-8"))["stages"]["ppo"]
    assert record["results"] == {"loss": 0.5, "worst": None, "path": "x", "pair": [1, 2]}
    assert record["outputs"] == {"ppo/model.txt": 5}
    assert record["seed"] == 5
    assert record["seconds"] >= 0
    assert record["started"].endswith("+00:00")
    assert set(record["versions"]) == {"python", "rlhf", "torch", "transformers", "trl"}
    assert record["inputs"]["ppo.kl.coefficient"] == "0.05"
    assert {"seed", "stage sft", "stage reward", "content of ppo.data.sources.0"} <= set(record["inputs"])
    assert not [name for name in record["inputs"] if name.startswith(("tracking", "distributed", "name", "runs_dir"))]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 0, "stages": {}}', '{"format": 1, "stages": {"sft": {}}}'])
def test_a_broken_manifest_is_named(text: str, run, stages: Stages):
    folder = RunFolder(Path("runs/fake"))
    folder.root.mkdir(parents=True)
    folder.manifest.write_text(text, encoding="utf-8")
    with pytest.raises(StageError, match=r"manifest\.json is not a manifest .*Remove it to run all stages again"):
        run()
    assert stages.take() == []


def test_the_resolved_config_lies_in_the_folder_and_runs_the_same_run(run, stages: Stages):
    folder = run("ppo.epochs=2")
    stages.take()
    text = folder.config.read_text(encoding="utf-8")
    assert "  epochs: 2  # override" in text
    run_pipeline(load_config(folder.config))
    assert stages.take() == []
    assert folder.config.read_text(encoding="utf-8") == text  # still says where values came from in the first place
    run_pipeline(load_config(folder.config, ["ppo.epochs=1"]))
    assert "  epochs: 1  # override" in folder.config.read_text(encoding="utf-8")


def test_the_comparison_and_the_report_are_shown_at_the_end(run, stages: Stages, capsys: pytest.CaptureFixture):
    folder = run("tracking.report=true")
    out = capsys.readouterr().out
    assert "Before and after, 7 held-out prompts" in out
    cells = next(line for line in out.splitlines() if "score" in line)
    assert [cell.strip() for cell in cells.strip("│").split("│")] == ["score", "0.1", "0.35", "+0.25", "+0.2 to +0.3"]
    assert "PPO scores higher on 75% of the prompts." in out
    assert folder.report.is_file()
    assert f"Report: {folder.report}" in out


def test_the_other_processes_take_over_the_plan_and_write_nothing(run, stages, monkeypatch: pytest.MonkeyPatch, capsys):
    def refuse(*_):
        raise AssertionError("only the first process reads data, models and manifest")

    waits: list[int] = []
    plan = Manifest(Path("unread")), [Step(name, "hash", [], "not finished yet") for name in ("sft", "ppo")]
    for name in ("fingerprints", "make_plan"):
        monkeypatch.setattr(rlhf.run.pipeline, name, refuse)
    monkeypatch.setattr(rlhf.run.pipeline, "from_first_process", lambda make: plan)
    monkeypatch.setattr(rlhf.run.pipeline, "barrier", lambda: waits.append(1))
    monkeypatch.setattr(rlhf.run.pipeline, "_runtime", lambda config: object())  # which would join the processes
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(Stages, "run", lambda self, name, *_: self.ran.append(name) or {})
    run()
    assert stages.take() == ["sft", "ppo"]
    assert not Path("runs").exists()
    assert capsys.readouterr().out == ""
    assert len(waits) == 3 * 2  # as many as in the first process, or one would wait for ever


def test_a_finished_run_ends_without_importing_torch(run, stages: Stages, tmp_path: Path):
    run()
    code = (
        "import sys; sys.argv = ['rlhf', 'run', 'my.yaml']\n"
        "from rlhf.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: print('exit', end.code)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["exit 0", "False False"], done.stderr
    assert sum(": skipped, nothing changed since" in line for line in lines) == 4


def test_the_folder_of_runs_may_lie_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = Config.model_validate({"name": "demo", "runs_dir": "~/runs", "model": {"path": "m"}})
    assert folder_of(config).root == tmp_path / "runs" / "demo"
