"""Tiny data and configurations for the SFT and the reward stage, and slow oracles of what they measure."""

import json
import math
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from reward_models.chat import encode_prompt, encode_response
from rlhf.config.data import DataConfig
from rlhf.config.model import LoraConfig
from rlhf.config.schema import Config
from rlhf.data import load_rows
from rlhf.data.split import split_of
from rlhf.launch.runtime import Runtime
from rlhf.models.adapters import add_adapters
from rlhf.models.seeding import seeded
from rlhf.tracking.progress import StageProgress

CPU = Runtime(torch.device("cpu"))
LOGGED = 6e-5  # transformers 4 rounds what it logs to four digits
COLOURS = ["red", "green", "blue", "black", "white", "pink"]


class Recorder:
    """Stands for the tracker."""

    def __init__(self):
        self.logged = []
        self.progress = StageProgress("test", enabled=False)

    def log(self, metrics, step):
        self.logged.append((step, dict(metrics)))

    def curve(self, name):
        """Values of one metric in the order in which they were logged."""
        return [metrics[name] for _, metrics in self.logged if name in metrics]


def prompts(train: int, validation: int):
    """Prompts of which exactly so many fall into each split, at a validation fraction of 0.2."""
    chosen = {"train": [], "validation": []}
    for i in range(1000):
        prompt = f"item {i}: say {COLOURS[i % 6]}"
        chosen[split_of(prompt, 0.2, 0.0)].append((prompt, COLOURS[i % 6]))
    return chosen["train"][:train] + chosen["validation"][:validation]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_demonstrations(path: Path, train: int = 24, validation: int = 6, respond=lambda colour: colour) -> Path:
    return write(path, [{"prompt": p, "completion": respond(c)} for p, c in prompts(train, validation)])


def write_preferences(path: Path, train: int = 24, validation: int = 10) -> Path:
    """Pairs that are told apart by one word."""
    rows = [{"prompt": p, "chosen": f"good {c}", "rejected": f"bad {c}"} for p, c in prompts(train, validation)]
    return write(path, rows)


def make_config(folder: Path, *, lora: bool | float = False, dtype: str = "float32", **sections) -> Config:
    """A model from scratch, and the stages whose keys are given; the data lie in `folder`.

    `lora` is whether there are adapters, or the dropout on their input.
    """
    model = {
        "architecture": {"hidden_size": 32, "layers": 2, "heads": 4, "max_positions": 128},
        "tokenizer": {"vocab_size": 290},
        "dtype": dtype,
    }
    if lora:
        model["lora"] = {"rank": 4, "alpha": 16, "dropout": 0.0 if lora is True else lora}
    files = {"sft": folder / "demonstrations.jsonl", "reward": folder / "preferences.jsonl"}
    shared = {"batch_size": 8, "max_tokens": 128}
    for name, keys in sections.items():
        if name in files and keys is not None:
            sections[name] = {"data": {"path": str(files[name]), "validation_fraction": 0.2}, **shared, **keys}
    tracking = {"wandb": {"mode": "disabled"}, "tensorboard": False, "report": False}
    values = {"name": "tiny", "runs_dir": str(folder), "model": model, "tracking": tracking, **sections}
    return Config.model_validate(values)


def rows_of(data: DataConfig, kind: str):
    return load_rows(data, kind)


def mean_response_loss(folder: Path, demonstrations) -> float:
    """Mean -log p of all response tokens and EOS under a saved policy, one row and one token at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    losses = []
    for row in demonstrations:
        context = encode_prompt(tokenizer, row.prompt)
        answer = encode_response(tokenizer, row.prompt, row.response)
        with torch.no_grad():
            logits = model(torch.tensor([context + answer])).logits[0]
        for position, token in enumerate(answer, start=len(context)):
            before = logits[position - 1]
            losses.append(math.log(sum(math.exp(z) for z in before.tolist())) - before[token].item())
    return sum(losses) / len(losses)


def tiny_model(family: str, *, classifier: bool = False, lora: bool = False, dropout: float = 0.0):
    """A model in float64 with random weights, in training mode; with adapters that do something if `lora`."""
    sizes = {"vocab_size": 61, "pad_token_id": 0, "num_labels": 1}
    kinds = {
        "llama": ("Llama", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                            "num_key_value_heads": 1, "intermediate_size": 24}),
        "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0,
                          "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        "opt": ("OPT", {"hidden_size": 16, "word_embed_proj_dim": 8, "num_hidden_layers": 2, "ffn_dim": 24,
                        "num_attention_heads": 2, "max_position_embeddings": 64, "dropout": 0.0}),
        "bert": ("Bert", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
                          "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
    }  # fmt: skip
    name, keys = kinds[family]
    head = "ForSequenceClassification" if classifier else "LMHeadModel" if family == "gpt2" else "ForCausalLM"
    with seeded(0):
        model = getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**sizes, **keys))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        if lora:
            task = "reward_model" if classifier else "language_model"
            model = add_adapters(model, LoraConfig(rank=2, alpha=4, dropout=dropout, top_layers=1), task)
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.3)
    return model.double().train()


def gradients(model, loss):
    """Gradients of all trained parameters, by name; a parameter that has none is at 0."""
    model.zero_grad()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in model.named_parameters() if p.requires_grad}  # fmt: skip
