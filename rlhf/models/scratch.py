"""Models without a past: random weights and a tokenizer trained on the run's own texts.

Called by `load.py` for `model.architecture`. Same texts, same seed: same tokenizer, same weights.
"""

from collections.abc import Iterable
from typing import cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlhf.config.model import ArchitectureConfig, TokenizerConfig
from rlhf.errors import ModelError

EOS, PAD = "<|endoftext|>", "<|pad|>"


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, max_positions: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer (Radford et al., 2019, 2.2): any text can be encoded, nothing is unknown.

    Args:
        texts: What to learn merges from.
        config: Size of the vocabulary: 256 bytes, EOS, pad, and the rest merges. Few texts may give fewer.
        max_positions: Longest sequence of the model, in tokens.

    Raises:
        ModelError: If there is no text.
    """
    corpus = [text for text in texts if text.strip()]
    if not corpus:
        raise ModelError("model.tokenizer: there are no texts to train a tokenizer on. Give a stage that has data.")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return cast(
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=EOS,
            pad_token=PAD,
            model_max_length=max_positions,
            clean_up_tokenization_spaces=False,
        ),
    )


def build_config(architecture: ArchitectureConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The transformers config of an architecture. Dropout is 0 and the embedding is tied to the output.

    Raises:
        ModelError: If a key does not apply to the model family.
    """
    shared = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    return {"llama": _llama, "gpt2": _gpt2, "opt": _opt}[architecture.type](architecture, shared)


def build_model(config: PretrainedConfig) -> PreTrainedModel:
    """A causal language model with random float32 weights, drawn from torch's global generator."""
    return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def _width(architecture: ArchitectureConfig) -> int:
    return architecture.intermediate_size or 4 * architecture.hidden_size


def _llama(architecture: ArchitectureConfig, shared: dict[str, object]) -> PretrainedConfig:
    return LlamaConfig(
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.key_value_heads or architecture.heads,
        intermediate_size=_width(architecture),
        max_position_embeddings=architecture.max_positions,
        **shared,
    )


def _gpt2(architecture: ArchitectureConfig, shared: dict[str, object]) -> PretrainedConfig:
    return GPT2Config(
        n_embd=architecture.hidden_size,
        n_layer=architecture.layers,
        n_head=architecture.heads,
        n_inner=_width(architecture),
        n_positions=architecture.max_positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        **shared,
    )


def _opt(architecture: ArchitectureConfig, shared: dict[str, object]) -> PretrainedConfig:
    return OPTConfig(
        hidden_size=architecture.hidden_size,
        word_embed_proj_dim=architecture.hidden_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        ffn_dim=_width(architecture),
        max_position_embeddings=architecture.max_positions,
        dropout=0.0,
        **shared,
    )
