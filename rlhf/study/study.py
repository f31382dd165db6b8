"""The study: the whole pipeline for several seeds, and a judge that PPO never saw.

For each seed the reward model is fitted on one half of the preference pairs and PPO is trained against it. The judge is
a reward model fitted on the other half. A policy that games its reward model gains by that one and not by the judge.

    runs/NAME-study/seedN/              the pipeline with seed N and reward.data.subset: first_half
    runs/NAME-study/seedN-judge/        the reward stage alone on second_half, from seedN's SFT policy
    runs/NAME-study/{study.json,study.md}

All training goes through the pipeline, so a study that is run again skips what is finished. What the numbers are is
said in `rlhf.study.numbers`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from rlhf.config.load import LoadedConfig, load_config
from rlhf.config.schema import Config
from rlhf.config.yaml_reader import format_value
from rlhf.errors import StageError
from rlhf.files.atomic import write_text
from rlhf.launch.rank import is_main_process
from rlhf.run.pipeline import folder_of
from rlhf.run.start import start

__all__ = ["parse_seeds", "run_study"]

# The judge's new head is drawn with another seed than the reward model's: two models with the same random head on the
# same trunk would share what training leaves of it, and agree for that reason.
_JUDGE_SEED_OFFSET = 1_000_000


def run_study(path: Path, overrides: Sequence[str], seeds: Sequence[int]) -> Path:
    """Run or complete the study.

    Args:
        path: A configuration with the sections reward, ppo and evaluate.
        overrides: `key.path=value`, for every run of the study.
        seeds: One run of the pipeline each.

    Returns:
        The path of study.md; study.json lies beside it.

    Raises:
        StageError: A section is missing, a seed occurs twice, or a run of the study failed.
        UserError: See `rlhf.run.pipeline.run_pipeline`.
    """
    config = load_config(path, overrides).config
    _check(config, seeds)
    root = Path(config.runs_dir).expanduser() / f"{config.name}-study"
    shared = [*overrides, f"runs_dir={format_value(str(root))}"]
    runs = [_run_seed(path, shared, seed) for seed in seeds]
    if is_main_process():
        _conclude(runs, root)
    return root / "study.md"


def parse_seeds(text: str) -> list[int]:
    """Read seeds as they stand on the command line.

    Raises:
        StageError: An entry is no whole number.
    """
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise StageError(f"--seeds is {text!r}: give whole numbers with commas between, as in --seeds 0,1,2") from None


def _check(config: Config, seeds: Sequence[int]) -> None:
    missing = [name for name in ("reward", "ppo", "evaluate") if getattr(config, name) is None]
    if missing:
        raise StageError(f"a study needs the sections reward, ppo and evaluate: add {', '.join(missing)} to the config")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise StageError(f"seeds are {list(seeds)}: give at least one, each once, none below 0, as in --seeds 0,1,2")


def _run_seed(path: Path, shared: Sequence[str], seed: int) -> tuple[LoadedConfig, LoadedConfig]:
    """Run the pipeline for one seed, then the reward stage of its judge; return both configurations."""
    own = _run(path, [*shared, f"name=seed{seed}", f"seed={seed}", "reward.data.subset=first_half"])
    judge = [f"name=seed{seed}-judge", f"seed={seed + _JUDGE_SEED_OFFSET}", "reward.data.subset=second_half"]
    judge += ["sft=null", "ppo=null", "evaluate=null"]
    if own.config.sft is not None:  # to the judge's run, this seed's SFT policy is the configured model
        judge.append(f"model.path={format_value(str(folder_of(own.config).sft))}")
        judge += [f"model.{key}=null" for key in ("revision", "architecture", "tokenizer", "num_layers")]
    return own, _run(path, [*shared, *judge])


def _run(path: Path, overrides: list[str]) -> LoadedConfig:
    loaded = load_config(path, overrides)
    code = start(loaded, None, ["run", str(path), *overrides])
    if code:
        raise StageError(f"run {loaded.config.name} of the study failed with exit code {code}: see its message above")
    return loaded


def _conclude(runs: Sequence[tuple[LoadedConfig, LoadedConfig]], root: Path) -> None:
    """Let the judges score, and write the tables."""
    from rlhf.study.numbers import judged_run, pooled
    from rlhf.study.table import study_markdown

    configs = [(own.config, judge.config) for own, judge in runs]
    judged = [judged_run(own, folder_of(own), judge, folder_of(judge)) for own, judge in configs]
    study = {"runs": [run.numbers for run in judged], "pooled": pooled(judged, configs[0][0])}
    write_text(root / "study.md", study_markdown(study, judged[0].samples))
    write_text(root / "study.json", json.dumps(study, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
