"""Tool calls and messages of tools: context where the chat template writes them, else refused with the way out."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_helpers import CHATML, byte_tokenizer

from reward_models.chat import Text, encode_prompt, encode_response, prepare_tokenizer
from rlhf.config.data import DataConfig
from rlhf.data import Demonstration, Splits, Tokens, load_rows
from rlhf.errors import DataError

# ChatML that writes calls as <call>NAME ARGUMENTS</call>.
WITH_CALLS = CHATML.replace(
    "m['content'] +",
    "m['content'] + (('<call>' + m.tool_calls[0].function.name + ' ' + (m.tool_calls[0].function.arguments | tojson) "
    "+ '</call>') if m.tool_calls else '') +",
)
ASKED = {"role": "user", "content": "How warm is it in Oslo?"}
ANSWER = {"role": "assistant", "content": "It is 3 degrees."}


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


RESULT = {"role": "tool", "content": '{"celsius": 3}', "tool_call_id": "1", "name": "weather"}


def load(folder: Path, template: str, *messages: dict[str, Any]) -> tuple[Splits[Demonstration], Any]:
    tokenizer = prepare_tokenizer(byte_tokenizer(template, eos_token="<|im_end|>"))
    (folder / "rows.jsonl").write_text(json.dumps({"messages": messages}))

    def encode(prompt: Text, response: str | None) -> Tokens:
        return Tokens(encode_prompt(tokenizer, prompt), encode_response(tokenizer, prompt, response or ""))

    data = DataConfig(path=str(folder / "rows.jsonl"), validation_fraction=0)
    return load_rows(data, "demonstrations", encode=encode, max_tokens=999), tokenizer


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}'])
def test_a_template_that_writes_calls_gets_them(tmp_path: Path, arguments: Any) -> None:
    splits, tokenizer = load(tmp_path, WITH_CALLS, ASKED, call(arguments), RESULT, ANSWER)
    [row] = splits.train
    text = tokenizer.decode(row.tokens[0].context)
    assert '<|im_start|>assistant\n<call>weather {"city": "Oslo"}</call><|im_end|>\n' in text
    assert '<|im_start|>tool\n{"celsius": 3}<|im_end|>\n' in text
    assert tokenizer.decode(row.tokens[0].response) == "It is 3 degrees.<|im_end|>"


@pytest.mark.parametrize("name", ["weather", "warm"])  # the name may stand elsewhere in the conversation
def test_a_template_that_leaves_calls_out_is_refused(tmp_path: Path, name: str) -> None:
    lost = call({})
    lost["tool_calls"][0]["function"]["name"] = name
    with pytest.raises(
        DataError, match=r"rows\.jsonl, line 1, .* does not write the tool calls .* Write them into the"
    ):
        load(tmp_path, CHATML, ASKED, lost, RESULT, ANSWER)


def test_messages_of_tools_without_calls_are_like_any_other(tmp_path: Path) -> None:
    splits, tokenizer = load(tmp_path, CHATML, ASKED, RESULT, ANSWER)
    assert "<|im_start|>tool\n" in tokenizer.decode(splits.train[0].tokens[0].context)


def test_only_tools_have_the_keys_of_tools(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"column messages\[0\]: its key name is not read\. Write name into the content"
    ):
        load(tmp_path, CHATML, {**ASKED, "name": "Ann"}, ANSWER)
