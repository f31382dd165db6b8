"""The paths of a run folder. Stages ask here where to read and write; nothing is opened or made here.

runs/NAME/config.yaml               resolved, with where each value came from
runs/NAME/manifest.json             what each stage read, made and took
runs/NAME/{sft,reward,ppo}/         model folders that from_pretrained loads
runs/NAME/reward/adapter/           the reward model as an adapter on the SFT policy's trunk, if LoRA made it
runs/NAME/ppo/critic/               the critic, in the form that `rlhf.ppo.load_critic` expects
runs/NAME/evaluate.json             before and after
runs/NAME/{metrics.jsonl,rollouts/,report.html}
"""

from dataclasses import dataclass, replace
from pathlib import Path

STAGES = ("sft", "reward", "ppo", "evaluate")


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie.

    Attributes:
        root: The run folder itself.
        unfinished_stage: The stage that is being run. Its output goes beside the place of the finished one, which the
            pipeline replaces when the stage has succeeded; all other paths are those of finished stages.
    """

    root: Path
    unfinished_stage: str | None = None

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def manifest(self) -> Path:
        """What each stage read, made and took."""
        return self.root / "manifest.json"

    @property
    def sft(self) -> Path:
        """Model folder of the SFT policy."""
        return self.output_of("sft")

    @property
    def reward(self) -> Path:
        """Model folder of the reward model."""
        return self.output_of("reward")

    @property
    def ppo(self) -> Path:
        """Model folder of the PPO policy."""
        return self.output_of("ppo")

    @property
    def evaluate(self) -> Path:
        """The comparison of the two policies, a JSON file."""
        return self.output_of("evaluate")

    @property
    def metrics(self) -> Path:
        """One line of JSON for each logged step."""
        return self.root / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        """Parquet files of PPO's episodes, one for each iteration."""
        return self.root / "rollouts"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.root / "report.html"

    def output_of(self, stage: str) -> Path:
        """The folder or file that a stage makes."""
        name = "evaluate.json" if stage == "evaluate" else stage
        return self.root / (f"{name}.unfinished" if stage == self.unfinished_stage else name)

    def while_running(self, stage: str) -> "RunFolder":
        """The same folder as `stage` sees it while it runs."""
        return replace(self, unfinished_stage=stage)
