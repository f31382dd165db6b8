"""The packed rollouts, read back as the page's script reads them: every number of every token at its place."""

import base64
import gzip
import json
import struct

import numpy as np
import pytest

from rlhf.report import episodes
from rlhf.report.episodes import TOKEN_NUMBERS, blocks_of, pack
from rlhf.results.run import load_run
from rlhf.tracking import rollouts

SCORED = {"logprob": -1.5, "kl": 0.25, "reward_score": 0.0, "reward_penalty": 0.0, "value": 0.5, "advantage": -2.0}


def token(text, turn=1, **numbers):
    kl = -0.125
    values = {**SCORED, "reward_kl": kl, **numbers}
    values.setdefault("reward", values["reward_score"] + values["reward_penalty"] + values["reward_kl"])
    return {"id": 7, "text": text, "turn": turn, **values}


def blocks(tmp_path, *iterations):
    (tmp_path / "config.yaml").write_text("name: x\n")
    for number, rows in enumerate(iterations, 1):
        rollouts.write(tmp_path, rollouts.typed_rows(rows, number), number)
    return blocks_of(load_run(tmp_path))


def unpack(block):
    return gzip.decompress(base64.b64decode(block))


def tokens_of(found, number):
    """What page/data.js does, literally: text, turn and numbers of each token of one episode."""
    head = json.loads(unpack(found["episodes"]))
    block, place = divmod(number, head["per_block"])
    counts = head["tokens"][block * head["per_block"] :][: head["per_block"]]
    data, count, first = unpack(found[f"tokens-{block}"]), sum(counts), sum(counts[:place])
    result = []
    for at in range(first, first + counts[place]):
        (code,) = struct.unpack_from("<I", data, 4 * at)
        (turn,) = struct.unpack_from("<B", data, 4 * count + at)
        numbers = [
            struct.unpack_from("<e", data, 5 * count + 2 * (i * count + at))[0] for i in range(len(TOKEN_NUMBERS))
        ]
        result.append(
            {"text": head["vocabulary"][code], "turn": turn, **dict(zip(TOKEN_NUMBERS, numbers, strict=True))}
        )
    return result


def test_every_token_is_found_with_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(episodes, "EPISODES_PER_BLOCK", 2)
    first = [
        {"index": 0, "tokens": [token("a"), token("b", turn=2, value=3.0, reward_score=2.0)]},
        {"index": 1, "tokens": []},
        {"index": 2, "tokens": [token("c", logprob=-4.0)]},
    ]
    second = [{"index": 3}, {"index": 4, "tokens": [token("a", advantage=8.0), token("c")]}]
    found = blocks(tmp_path, first, second)
    assert {name for name in found if name.startswith("tokens")} == {"tokens-0", "tokens-1", "tokens-2"}
    for number, row in enumerate([*first, *second]):
        shown = tokens_of(found, number)
        assert len(shown) == len(row.get("tokens", []))
        for have, want in zip(shown, row.get("tokens", []), strict=True):
            assert (have["text"], have["turn"]) == (want["text"], want["turn"])
            assert {name: have[name] for name in SCORED} == {name: want[name] for name in SCORED}
            assert np.isnan(have["reward"])  # it is the sum of its parts, which the page adds up
            assert have["reward_kl"] == -0.125


def test_a_whitened_reward_is_kept_beside_its_parts(tmp_path):
    found = blocks(tmp_path, [{"tokens": [token("a", reward=1.5), token("b")]}])
    assert [shown["reward"] for shown in tokens_of(found, 0)] == [1.5, -0.125]


def test_an_episode_without_a_score_does_not_hide_the_rewards_of_others(tmp_path):
    bare = {"tokens": [{"id": 3, "text": "x", "turn": 1}]}
    found = blocks(tmp_path, [bare, {"tokens": [token("a", reward=1.5)]}])
    assert np.isnan(tokens_of(found, 0)[0]["logprob"])
    assert tokens_of(found, 1)[0]["reward"] == 1.5


def test_columns_hold_what_sorts_and_filters(tmp_path):
    rows = [
        {
            "index": 3,
            "prompt": "Hi",
            "response": "</script>",
            "score": 0.123456789,
            "stop_reason": "eos",
            "component/a": 1,
        },
        {"index": 3, "prompt": "Hi", "response": None, "score": float("nan"), "stop_reason": None},
    ]
    found = blocks(tmp_path, rows, [{"prompt": "Yo"}])
    head = json.loads(unpack(found["episodes"]))
    assert head["numbers"]["score"] == [0.12346, None, None]
    assert head["numbers"]["iteration"] == [1, 1, 2]
    assert head["numbers"]["component/a"] == [1.0, None, None]
    assert [head["texts"]["prompt"]["values"][code] for code in head["texts"]["prompt"]["codes"]] == ["Hi", "Hi", "Yo"]
    assert head["texts"]["stop_reason"]["codes"] == [0, -1, -1]
    assert json.loads(unpack(found["responses"])) == ["</script>", None, None]


def test_a_conversation_is_kept_without_what_the_policy_said(tmp_path):
    talk = [("user", 0, "Guess."), ("assistant", 1, "5"), ("user", 1, "Higher."), ("assistant", 2, "7")]
    messages = [{"role": role, "turn": turn, "content": content} for role, turn, content in talk]
    found = blocks(
        tmp_path, [{"prompt": "Guess.", "messages": messages}, {"prompt": "Guess.", "messages": messages[:2]}]
    )
    assert json.loads(unpack(found["talk-0"])) == [
        [["user", 0, "Guess."], ["assistant", 1, None], ["user", 1, "Higher."], ["assistant", 2, None]],
        None,
    ]


def test_plain_prompts_and_responses_need_no_conversations(tmp_path):
    messages = [{"role": "user", "turn": 0, "content": "Hi"}, {"role": "assistant", "turn": 1, "content": "Yo"}]
    assert "talk-0" not in blocks(tmp_path, [{"prompt": "Hi", "messages": messages}])
    assert "talk-0" in blocks(tmp_path, [{"prompt": "user: Hi", "messages": messages}])


def test_without_rollouts_there_is_nothing(tmp_path):
    assert blocks(tmp_path) == {}


@pytest.mark.parametrize("text", ["</script><!--", "\N{PARTY POPPER}", "", "x" * 100_000])
def test_what_is_packed_cannot_end_its_script(text):
    block = pack(text)
    assert not set(block) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    assert unpack(block).decode() == text
