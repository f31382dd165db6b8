"""Tokenizers, policies and reward-model backbones, ready to train: what the stages call.

    source (where it lies) or scratch (random weights)  ->  dropout off, embeddings that fit, pad and EOS right

Weights come as float32 unless another dtype is asked for; lower compute precision is the trainers' matter, and so are
devices, adapters (`adapters.py`) and sharding.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_models.chat import prepare_tokenizer
from rlhf.config.model import ModelConfig, TokenizerConfig
from rlhf.errors import ModelError
from rlhf.files.hub import hub_reachable
from rlhf.models.dropout import disable_dropout
from rlhf.models.quiet import quiet
from rlhf.models.scratch import build_config, build_model, train_tokenizer
from rlhf.models.seeding import seeded
from rlhf.models.source import resolve_model

HEAD = "score.weight"  # what transformers calls the head of its decoder-only sequence classifiers


def load_tokenizer(
    config: ModelConfig, texts: Iterable[str] | None = None, *, folder: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """The model's tokenizer with chat template, EOS and pad settled.

    Args:
        config: The `model` section.
        texts: What a tokenizer is trained on, if the model is built from scratch.
        folder: Where an earlier stage saved it; instead of the config's origin.

    Raises:
        ModelError: If it cannot be found, or there are no texts to train it on.
        ChatFormatError: If the chat template cannot be used with it.
    """
    if config.architecture is not None and folder is None:
        trained = config.tokenizer or TokenizerConfig()
        tokenizer = train_tokenizer(texts or (), trained, config.architecture.max_positions)
    else:
        origin, options = _origin(config, folder)
        with _clear_errors(origin, "tokenizer"), quiet():
            tokenizer = AutoTokenizer.from_pretrained(origin, **options)
    return prepare_tokenizer(tokenizer, config.chat_template)


def load_policy(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A causal language model that fits the tokenizer, with dropout off.

    Its generation config holds pad, BOS and EOS and nothing else: no sampling option of a Hub model acts unseen.

    Args:
        config: The `model` section.
        tokenizer: From `load_tokenizer`.
        folder: Where an earlier stage saved it; instead of the config's origin and `num_layers`.
        seed: Draws the weights of a model from scratch.
        dtype: Of the weights.

    Raises:
        ModelError: If it cannot be found or loaded, or `num_layers` exceeds its blocks.
    """
    if config.architecture is not None and folder is None:
        model_config = _keep_layers(build_config(config.architecture, tokenizer), config.num_layers)
        with seeded(seed):
            model = build_model(model_config).to(dtype)
    else:
        model, missing = _load(AutoModelForCausalLM, config, folder, dtype)
        _refuse_missing(missing, folder or config.path)
    _fit(model, tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def load_sequence_classifier(
    origin: ModelConfig | PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A model with one scalar per sequence, read at the last token that is not pad; dropout off.

    A head that the origin does not have is drawn from N(0, 1 / (d + 1)), d the hidden size: a standard deviation of
    1 / sqrt(d + 1) (Stiennon et al., 2020, appendix B). A saved reward model keeps its own.

    Args:
        origin: A saved folder or Hub id, a `model` section, or a causal language model whose trunk is copied.
        tokenizer: From `load_tokenizer`, for this backbone.
        seed: Draws the head.
        dtype: Of the weights.

    Raises:
        ModelError: If it cannot be found or loaded, or its family has no such head.
    """
    if isinstance(origin, PreTrainedModel):
        model, has_head = _with_trunk_of(origin, dtype), False
    else:
        config = origin if isinstance(origin, ModelConfig) else ModelConfig(path=str(origin))
        if config.architecture is not None:
            trunk = load_policy(config, tokenizer, seed=seed)
            return load_sequence_classifier(trunk, tokenizer, seed=seed, dtype=dtype)
        model, missing = _load(AutoModelForSequenceClassification, config, None, dtype)
        _refuse_missing(missing - {HEAD}, config.path)
        has_head = HEAD not in missing
    _fit(model, tokenizer)
    if not has_head:
        _draw_head(model, seed)
    return model


def open_config(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """What the model will be, without its weights: errors about its origin come before anything is spent.

    Args:
        config: A `model` section.
        tokenizer: From `load_tokenizer`.

    Raises:
        ModelError: If it cannot be found or opened, or `num_layers` exceeds its blocks.
    """
    if config.architecture is not None:
        return _keep_layers(build_config(config.architecture, tokenizer), config.num_layers)
    origin, options = _origin(config, None)
    with _clear_errors(origin, "model"), quiet():
        return _keep_layers(AutoConfig.from_pretrained(origin, **options), config.num_layers)


def check_classifier(key: str, model_config: PretrainedConfig) -> None:
    """Refuse a backbone whose family has no scalar head.

    Args:
        key: The section of the configuration that names it.
        model_config: From `open_config`.

    Raises:
        ModelError: transformers has no sequence classifier of this family.
    """
    if type(model_config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"{key}: transformers has no sequence classifier of the family {model_config.model_type}, so it cannot be "
            "a reward model or a critic of its own. Set reward.model to another backbone; for the critic, set "
            "ppo.critic.type to shared"
        )


def max_positions(config: PretrainedConfig) -> int | None:
    """How many tokens a model of this config has positions for; None if nothing limits them."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions


def _load(
    auto_class: Any, config: ModelConfig, folder: str | Path | None, dtype: torch.dtype
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of weights that its files lack."""
    origin, options = _origin(config, folder)
    with _clear_errors(origin, "model"), quiet():
        model_config = AutoConfig.from_pretrained(origin, **options)
        is_classifier = any("SequenceClassification" in name for name in model_config.architectures or ())
        if auto_class is AutoModelForSequenceClassification:
            model_config.num_labels = 1
        elif is_classifier:
            raise ModelError(f"{origin}: a reward model ({model_config.architectures[0]}), not a language model.")
        if folder is None:
            _keep_layers(model_config, config.num_layers)
        model, report = auto_class.from_pretrained(
            origin, config=model_config, dtype=dtype, output_loading_info=True, **options
        )
    return model, set(report["missing_keys"])


def _origin(config: ModelConfig, folder: str | Path | None) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is given: a folder or Hub id, and options."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if folder is not None:
        return resolve_model(str(folder)), options
    assert config.path is not None, "a model from scratch has no origin"
    if config.revision is not None:
        options["revision"] = config.revision
    origin = resolve_model(config.path)
    options["local_files_only"] = not Path(origin).is_dir() and not hub_reachable()  # then the Hub's local cache serves
    return origin, options


def _keep_layers(model_config: PretrainedConfig, num_layers: int | None) -> PretrainedConfig:
    """Set the number of blocks to the first `num_layers`; the final norm and the head stay."""
    text_config = model_config.get_text_config()  # a model of several modalities keeps its blocks' number there
    available = text_config.num_hidden_layers
    if num_layers is None or num_layers == available:
        return model_config
    if num_layers > available:
        raise ModelError(
            f"model.num_layers {num_layers}: the model has {available} blocks; allowed are 1 to {available}"
        )
    text_config.num_hidden_layers = num_layers
    for name, entries in list(vars(text_config).items()):  # lists with one entry for each block, where blocks differ
        if "layer" in name and isinstance(entries, list) and len(entries) == available:
            setattr(text_config, name, entries[:num_layers])
    if getattr(text_config, "attention_types", None):  # GPT-Neo's short form of attention_layers
        text_config.attention_types = [[text_config.attention_layers, 1]]
    return model_config


def _refuse_missing(missing: set[str], path: str | Path | None) -> None:
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ModelError(f"{path}: its files lack {len(missing)} of the model's weights ({some}, ...). Save it anew.")


def _fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model agree with the tokenizer, and switch dropout off."""
    _grow_embeddings(model, len(tokenizer))
    for model_config in (model.config, model.config.get_text_config()):
        model_config.pad_token_id = tokenizer.pad_token_id  # also where a classifier looks for the last real token
        model_config.eos_token_id = tokenizer.eos_token_id
        model_config.bos_token_id = tokenizer.bos_token_id
    disable_dropout(model)
    model.eval()


def _grow_embeddings(model: PreTrainedModel, size: int) -> None:
    """Add rows for added tokens. Each is the mean of the others, so that no added token is likelier than average."""
    old = model.get_input_embeddings().num_embeddings
    if size <= old:  # many models have spare rows
        return
    with seeded(0):  # keeps the global generator still; what is drawn here is overwritten
        model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for weight in () if layer is None else layer.parameters(recurse=False):  # (V, d), and a bias (V,)
                weight[old:] = weight[:old].mean(dim=0)


def _with_trunk_of(policy: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    model_config = copy.deepcopy(policy.config)
    model_config.num_labels = 1
    with _clear_errors(type(policy).__name__, "reward head"), seeded(0):
        model = AutoModelForSequenceClassification.from_config(model_config, dtype=dtype)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    return cast(PreTrainedModel, model)


def _draw_head(model: PreTrainedModel, seed: int) -> None:
    head = model.get_parameter(HEAD)  # (1, d)
    # A stream of its own: with the trunk's seed the head would repeat the first numbers of the embedding.
    generator = torch.Generator().manual_seed(seed ^ 0x5C0DE)
    deviation = (head.shape[1] + 1) ** -0.5  # 1 / sqrt(d + 1)
    with torch.no_grad():
        head.copy_(torch.randn(head.shape, generator=generator) * deviation)


@contextmanager
def _clear_errors(origin: str, what: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises on missing, damaged and unsupported files into errors with a way out."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        if Path(origin).is_dir():
            raise ModelError(
                f"{origin}: the {what} cannot be loaded: {cause}. Give a folder that save_pretrained wrote."
            ) from error
        raise ModelError(
            f"{origin}: no such folder here, and the {what} cannot be had from the Hub: {cause}. Check name and "
            f"revision; log in (hf auth login) for a gated model; without a network, run `hf download {origin}` where "
            "there is one, and give the folder."
        ) from error
