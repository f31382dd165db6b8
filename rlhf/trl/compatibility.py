"""What TRL's PPOTrainer has besides training: small methods that work, and names that do not, each with what to use.

TRL's class inherits transformers' Trainer, of whose methods about half need its training loop. `INSTEAD` is the one
list of those; the functions are methods of `PPOTrainer`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer

from rlhf.errors import DataError
from rlhf.trl.token_dataset import input_ids

_LOOP = "the loop is rlhf.ppo.trainer.PPO; its rollout, score and update are found on trainer.ppo"
_EVALUATE = "use generate_completions to look at responses, or `rlhf evaluate` to compare two policies"
_OPTIMIZERS = "it is made with the trainer: see trainer.optimizer and trainer.lr_scheduler, or give optimizers"
_PASSES = "the loop runs the models itself: see rlhf.policies.actor_critic.ActorCritic"

INSTEAD = {  # a public name of TRL 1.12's PPOTrainer that does not work here -> what to use
    "autocast_smart_context_manager": _PASSES,
    "call_model_init": "give model; there is no model_init",
    "compute_loss": "the losses are in rlhf.ppo.losses; for another one write a function beside them",
    "compute_loss_context_manager": _PASSES,
    "create_accelerator_and_postprocess": "it is made with the trainer: see trainer.accelerator",
    "create_optimizer": _OPTIMIZERS,
    "create_optimizer_and_scheduler": _OPTIMIZERS,
    "create_scheduler": _OPTIMIZERS,
    "evaluate": _EVALUATE,
    "evaluation_loop": _EVALUATE,
    "floating_point_ops": "operations are not counted; `python -m benchmarks` estimates them",
    "get_batch_samples": _LOOP,
    "get_test_dataloader": _EVALUATE,
    "hyperparameter_search": "start one run for each set of options",
    "loss_is_scaled_for_ga": "losses are sums over tokens, divided by the tokens of the minibatch",
    "predict": _EVALUATE,
    "prediction_step": _EVALUATE,
    "set_initial_training_values": "see args.batch_size, args.num_total_batches and args.total_episodes",
    "store_flos": "operations are not counted; `python -m benchmarks` estimates them",
    "training_step": _LOOP,
}


def missing(name: str) -> AttributeError:
    """Return the error for a name that the trainer lacks."""
    if name in INSTEAD:
        return AttributeError(f"PPOTrainer.{name} of TRL does not work here: {INSTEAD[name]}")
    return AttributeError(f"'PPOTrainer' object has no attribute {name!r}")


def end(trainer: Any) -> None:
    """Leave the process group; the last call of a script."""
    trainer.accelerator.end_training()


def get_train_dataloader(trainer: Any) -> DataLoader[Any]:
    """Return the prompts in batches of one process, padded on the left. The loop has an order of its own."""
    return _loader(trainer, "train_dataset", trainer.args.local_batch_size)


def get_eval_dataloader(trainer: Any) -> DataLoader[Any]:
    """Return the prompts of `eval_dataset` in batches, padded on the left."""
    return _loader(trainer, "eval_dataset", trainer.args.per_device_eval_batch_size)


def _loader(trainer: Any, name: str, batch_size: int) -> DataLoader[Any]:
    rows = getattr(trainer, name)
    if rows is None:
        raise DataError(f"there is no {name}: give it to the trainer")
    columns = [{"input_ids": input_ids(number, row)} for number, row in enumerate(rows)]
    collate = trainer.data_collator or DataCollatorWithPadding(trainer.processing_class)
    return DataLoader(columns, batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]


def num_examples(_: Any, dataloader: DataLoader[Any]) -> int:
    """Return the rows of a data set behind a loader."""
    return len(dataloader.dataset)  # type: ignore[arg-type]


def get_learning_rates(trainer: Any) -> list[float]:
    """Return the learning rate of each group of parameters."""
    return [float(group["lr"]) for group in trainer.optimizer.param_groups]


def get_num_trainable_parameters(trainer: Any) -> int:
    """Return how many numbers are trained, those of the critic included."""
    return sum(weight.numel() for weight in trainer.actor_critic.parameters() if weight.requires_grad)


def get_decay_parameter_names(_: Any, model: nn.Module) -> list[str]:
    """Return which parameters are decayed: matrices, not biases and the scales of norms."""
    return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]


def get_optimizer_group(trainer: Any, parameter: nn.Parameter | None = None) -> Any:
    """Return the group of a parameter, or without one the parameters of every group."""
    groups = trainer.optimizer.param_groups
    if parameter is None:
        return [group["params"] for group in groups]
    return next((group for group in groups if any(member is parameter for member in group["params"])), None)


def get_total_train_batch_size(_: Any, args: Any) -> int:
    """Return the episodes of an iteration."""
    return int(args.batch_size)


def one(_: Any) -> int:
    """Return the size of tensor, context and sequence parallelism, which there is not."""
    return 1


@contextmanager
def null_ref_context(trainer: Any) -> Iterator[None]:
    """Inside, the policy is the reference where that is the policy with its adapters switched off."""
    own = trainer.ref_model is None and trainer.actor_critic.adapters is not None
    with trainer.actor_critic.adapters.using() if own else nullcontext():
        yield


def metrics_format(_: Any, metrics: dict[str, float]) -> dict[str, float]:
    """Return numbers for people to read."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in metrics.items()}


# transformers' own, which need nothing but options and state.
get_optimizer_cls_and_kwargs: Any = Trainer.get_optimizer_cls_and_kwargs
log_metrics: Any = Trainer.log_metrics
save_metrics: Any = Trainer.save_metrics
