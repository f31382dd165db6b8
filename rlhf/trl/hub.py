"""The model card, and uploading to the Hub."""

from pathlib import Path
from typing import Any

import huggingface_hub

from rlhf.trl.config import PPOConfig

_CARD = """---
{metadata}
---

# {name}

Trained with proximal policy optimisation ([Schulman et al., 2017](https://arxiv.org/abs/1707.06347)) by
`rlhf.trl.PPOTrainer`{origin}. The critic is in the folder `critic`.

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{path}")
print(generator("...", max_new_tokens={response_length})[0]["generated_text"])
```
"""


def write_model_card(
    args: PPOConfig,
    config: Any,
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """Write README.md into `output_dir`.

    Args:
        args: Options.
        config: The policy's; says which model it was.
        model_name: Default: the name of the folder.
        dataset_name: The data set on the Hub.
        tags: Besides `ppo`.
    """
    base = getattr(config, "_name_or_path", "")
    if not base or Path(base).exists():
        base = None
    chosen = {"ppo", "rlhf", "generated_from_trainer", *([tags] if isinstance(tags, str) else tags or [])}
    metadata = huggingface_hub.ModelCardData(
        base_model=base,
        datasets=dataset_name,
        library_name="transformers",
        model_name=model_name,
        tags=sorted(chosen),
    )
    card = _CARD.format(
        metadata=metadata.to_yaml(),
        name=model_name or Path(args.output_dir).name,
        origin=f", from [{base}](https://huggingface.co/{base})" if base else "",
        path=args.hub_model_id or args.output_dir,
        response_length=args.response_length,
    )
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(args.output_dir, "README.md").write_text(card, encoding="utf-8")


def create_repository(args: PPOConfig, token: str | None = None, private: bool | None = None) -> str:
    """Create the repository, if it is not there, and return its full name."""
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    token = token if token is not None else args.hub_token
    private = private if private is not None else args.hub_private_repo
    url = huggingface_hub.create_repo(name, token=token, private=private, exist_ok=True)
    return str(url.repo_id)


def upload(
    args: PPOConfig, repository: str, message: str | None, token: str | None, revision: str | None, blocking: bool
) -> Any:
    """Upload `output_dir` without its checkpoints."""
    upload_folder: Any = huggingface_hub.upload_folder
    return upload_folder(
        repo_id=repository,
        folder_path=args.output_dir,
        commit_message=message,
        token=token if token is not None else args.hub_token,
        run_as_future=not blocking,
        ignore_patterns=["_*", "checkpoint-*/**"],
        revision=revision if revision is not None else args.hub_revision,
    )
