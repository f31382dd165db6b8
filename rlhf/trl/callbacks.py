"""Callbacks of transformers' kind on a trainer that is none of transformers'."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler, ExportableState, PrinterCallback, TrainerState

from rlhf.ppo.trainer import PPO
from rlhf.trl.config import PPOConfig


@dataclass
class PPOState(TrainerState):  # type: ignore[misc]
    """transformers' state of a trainer, with the episodes played so far."""

    episode: int = 0


class Callbacks:
    """The callbacks, and the state and control that they read and write.

    Args:
        args: Options.
        ppo: The loop, ready.
        tokenizer: The policy's.
        given: Callbacks (objects or classes) besides transformers' own.
    """

    def __init__(
        self, args: PPOConfig, ppo: PPO, tokenizer: PreTrainedTokenizerBase, given: Sequence[TrainerCallback]
    ) -> None:
        self.args = args
        callbacks = [*DEFAULT_CALLBACKS, *get_reporting_integration_callbacks(args.report_to), *given]
        callbacks.append(PrinterCallback if args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self.handler = CallbackHandler(callbacks, ppo.model, tokenizer, ppo.optimizer, ppo.schedule)
        self.control = TrainerControl()
        self.state = PPOState(
            is_local_process_zero=ppo.accelerator.is_local_main_process,
            is_world_process_zero=ppo.accelerator.is_main_process,
            max_steps=ppo.settings.iterations,
            train_batch_size=args.per_device_train_batch_size,
            stateful_callbacks=self._stateful(),
        )
        self.state.compute_steps(args, ppo.settings.iterations)

    def tell(self, event: str, *arguments: Any) -> None:
        """Call one event, e.g. `on_step_end`, of all callbacks."""
        if hasattr(self.handler, event):  # transformers 4 knows no on_push_begin
            self.control = getattr(self.handler, event)(self.args, self.state, self.control, *arguments)

    def log(self, logs: dict[str, float]) -> None:
        """Add numbers to the history, and hand them to whoever logs."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.tell("on_log", logs)

    def saved_state(self) -> PPOState:
        """Return the state as it is saved: with that of callbacks which have one."""
        for callback in self._stateful():
            self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        return self.state

    def go_on_from(self, path: str, iteration: int, episodes: int) -> None:
        """Take over the history of the run that is resumed.

        Args:
            path: Its `trainer_state.json`.
            iteration: Iterations that it has finished.
            episodes: Episodes that it has played.
        """
        earlier = PPOState.load_from_json(path)
        self.state.log_history, self.state.epoch = earlier.log_history, earlier.epoch
        self.state.global_step, self.state.episode = iteration, episodes

    def _stateful(self) -> list[Any]:
        return [each for each in [*self.handler.callbacks, self.control] if isinstance(each, ExportableState)]
