"""Callbacks of transformers' kind on a trainer that does not run transformers' constructor."""

import os
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler, ExportableState, PrinterCallback, TrainerState


@dataclass
class PPOState(TrainerState):  # type: ignore[misc]
    """transformers' state of a trainer, with the episodes played so far."""

    episode: int = 0


def install(trainer: Any, callbacks: list[TrainerCallback]) -> None:
    """Give a trainer, whose models are prepared, what transformers' callbacks, logging and Hub upload rely on."""
    args = trainer.args
    defaults = DEFAULT_CALLBACKS + get_reporting_integration_callbacks(args.report_to)
    trainer.callback_handler = CallbackHandler(
        defaults + callbacks, trainer.model, trainer.processing_class, trainer.optimizer, trainer.lr_scheduler
    )
    trainer.add_callback(PrinterCallback if args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
    trainer.control = TrainerControl()
    trainer.state = PPOState(
        is_local_process_zero=trainer.accelerator.is_local_main_process,
        is_world_process_zero=trainer.accelerator.is_main_process,
        logging_steps=args.logging_steps,
        save_steps=args.save_steps,
        stateful_callbacks=[
            callback
            for callback in [*trainer.callback_handler.callbacks, trainer.control]
            if isinstance(callback, ExportableState)
        ],
    )
    trainer.hub_model_id, trainer.current_flos, trainer.hp_search_backend = None, 0, None
    if args.push_to_hub:
        trainer.init_hf_repo()
    if args.should_save:
        os.makedirs(args.output_dir, exist_ok=True)
