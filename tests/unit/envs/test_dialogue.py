"""rlhf/Dialogue-v0: how the customer reacts, what is paid, and how it ends."""

import json

import gymnasium
import pytest

from envs import TextEnvError
from envs.tasks.dialogue import DialogueEnv, default_scenarios

SCENARIO = {
    "id": "lamp",
    "domain": "shop",
    "opening": "The lamp is dead.",
    "needs": [
        {"name": "care", "mentions": [["sorry"]], "insist": "Care!", "thanks": "Kind.", "example": "sorry"},
        {
            "name": "fix",
            "mentions": [["replace"]],
            "ask": "And now?",
            "insist": "Fix it!",
            "thanks": "Great.",
            "example": "replace",
        },
        {
            "name": "date",
            "mentions": [["friday"]],
            "ask": "When?",
            "insist": "I said when!",
            "thanks": "Fine.",
            "example": "friday",
        },
    ],
    "avoid": ["your fault"],
    "offended": "How rude.",
    "closing": "Bye then.",
}


def play(responses, max_turns=4, scenario=SCENARIO):
    env = DialogueEnv([scenario], max_turns=max_turns)
    env.reset(seed=0)
    return [env.step(response) for response in responses]


def test_reset_shows_the_opening_and_the_open_needs():
    observation, info = DialogueEnv([SCENARIO]).reset()
    assert observation == "The lamp is dead."
    assert info["prompt"] == info["messages"] == [{"role": "user", "content": "The lamp is dead."}]
    assert info["columns"] == {"scenario": "lamp", "domain": "shop"}
    assert (info["needs_met"], info["needs_open"], info["needs_met_now"]) == ([], ["care", "fix", "date"], [])


def test_one_need_a_turn():
    steps = play(["Sorry!", "We replace it.", "On Friday."])
    assert [s[0] for s in steps] == ["Kind. And now?", "Great. When?", "Bye then."]
    assert [s[1] for s in steps] == pytest.approx([1 / 3] * 3)
    assert [s[2] for s in steps] == [False, False, True]
    assert [s[3] for s in steps] == [False] * 3
    assert [s[4]["needs_met_now"] for s in steps] == [["care"], ["fix"], ["date"]]
    assert [s[4]["needs_open"] for s in steps] == [["fix", "date"], ["date"], []]
    assert [m["role"] for m in steps[-1][4]["messages"]] == ["user", "assistant"] * 3 + ["user"]


def test_all_needs_at_once():
    ((observation, reward, terminated, truncated, info),) = play(["Sorry, we replace it by Friday."])
    assert (observation, reward, terminated, truncated) == ("Bye then.", 1.0, True, False)
    assert info["needs_met"] == ["care", "fix", "date"]


def test_a_customer_who_got_nothing_insists():
    steps = play(["Noted.", "Noted.", "Sorry.", "Noted."])
    assert [s[0] for s in steps] == ["Care!", "Care!", "Kind. And now?", "Fix it!"]
    assert [s[1] for s in steps] == pytest.approx([-0.1, -0.1, 1 / 3, -0.1])


def test_a_later_need_may_be_met_first():
    steps = play(["We replace it.", "Sorry.", "Friday."])
    assert [s[0] for s in steps] == ["Great. Care!", "Kind. When?", "Bye then."]


def test_a_need_is_paid_once():
    assert [s[1] for s in play(["Sorry.", "Sorry."])] == pytest.approx([1 / 3, -0.1])


def test_offence_costs_and_nothing_counts():
    steps = play(["Sorry, but it is your fault, we replace it by Friday.", "Sorry."])
    assert (steps[0][0], steps[0][1], steps[0][2]) == ("How rude.", -0.25, False)
    assert steps[0][4]["needs_met"] == []
    assert steps[1][4]["needs_met"] == ["care"]


def test_the_better_the_response_the_higher_the_reward():
    responses = ["It is your fault.", "Noted.", "Sorry.", "Sorry, we replace it.", "Sorry, we replace it on Friday."]
    rewards = [play([response])[0][1] for response in responses]
    assert rewards == sorted(set(rewards))


def test_max_turns_truncates_but_does_not_terminate():
    steps = play(["Noted."] * 3, max_turns=3)
    assert [s[3] for s in steps] == [False, False, True]
    assert not any(s[2] for s in steps)
    with pytest.raises(TextEnvError, match="has ended"):
        play(["Noted."] * 3, max_turns=2)
    last = play(["Noted.", "Sorry, we replace it on Friday."], max_turns=2)[-1]
    assert (last[2], last[3]) == (True, False)


def test_episodes_do_not_leak_into_each_other():
    env = DialogueEnv([SCENARIO])
    env.reset()
    env.step("Sorry.")
    env.reset()
    assert env.step("Noted.")[0] == "Care!"
    assert env.step("Sorry.")[0] == "Kind. And now?"


def test_the_shipped_customers_can_all_be_satisfied():
    env = DialogueEnv()
    assert env.num_rows == len(default_scenarios()) == 24
    for index, scenario in enumerate(default_scenarios()):
        observation, _ = env.reset(options={"index": index})
        assert observation == scenario.opening
        steps = [env.step(need.example) for need in scenario.needs]
        assert sum(step[1] for step in steps) == pytest.approx(1.0)
        assert (steps[-1][0], steps[-1][2]) == (scenario.closing, True)


def test_scenarios_from_a_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(SCENARIO), encoding="utf-8")
    env = gymnasium.make("rlhf/Dialogue-v0", scenarios=str(path), max_turns=2)
    assert env.reset(seed=0)[0] == "The lamp is dead."


@pytest.mark.parametrize("max_turns", [0, -1, 2.0, True, "4"])
def test_max_turns_must_be_positive(max_turns):
    with pytest.raises(TextEnvError, match=f"max_turns is {max_turns!r}"):
        DialogueEnv(max_turns=max_turns)


@pytest.mark.parametrize("scenarios", [[], {}, 7, SCENARIO])
def test_scenarios_must_be_a_path_or_a_list(scenarios):
    with pytest.raises(TextEnvError, match=r"scenarios is .*at least one scenario"):
        DialogueEnv(scenarios)


def test_a_bad_scenario_in_a_list_is_named():
    with pytest.raises(TextEnvError, match=r"scenarios\[1\]: 'id' is None"):
        DialogueEnv([SCENARIO, {}])
