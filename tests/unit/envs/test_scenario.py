"""Scripted customers: the matching rule, reading files, and what every shipped scenario must hold to."""

import json

import pytest

from envs import TextEnvError
from envs.tasks.dialogue import default_scenarios
from envs.tasks.scenario import WORDS_READ, load_scenarios, mentions_any, parse_scenario

SHIPPED = default_scenarios()
each_scenario = pytest.mark.parametrize("scenario", SHIPPED, ids=lambda scenario: scenario.id)


def row(**changes):
    need = {"name": "greet", "mentions": [["hello"]], "insist": "Greet me.", "thanks": "Good.", "example": "hello"}
    whole = {"id": "x", "domain": "d", "opening": "Hm?", "needs": [need], "closing": "Bye.", "offended": "Hey!"}
    return {**whole, **changes}


@pytest.mark.parametrize(
    ("response", "phrases", "expected"),
    [
        ("We will REFUND you.", ("refund",), True),
        ("We refunded you.", ("refund",), False),
        ("We refunded you.", ("refund*",), True),
        ("prefund", ("refund*",), False),
        ("your  order\nnumber?", ("order number",), True),
        ("don\u2019t run it", ("don't run",), True),
        ("Stra\u00dfe", ("strasse",), True),
        ("a (new) one", ("(new)",), True),
        ("nothing", ("a", "b"), False),
        ("nothing", (), False),
        ("", ("a",), False),
    ],
)
def test_phrases_are_whole_words_in_any_case(response, phrases, expected):
    assert mentions_any(response, phrases) is expected


def test_only_the_first_words_are_read():
    filler = ["well"] * (WORDS_READ - 1)
    assert mentions_any(" ".join([*filler, "sorry"]), ("sorry",))
    assert not mentions_any(" ".join([*filler, "well", "sorry"]), ("sorry",))


def test_a_need_wants_every_group_and_no_exclusion():
    need = parse_scenario(
        row(
            needs=[
                {
                    "name": "n",
                    "mentions": [["refund", "money back"], ["days", "week"]],
                    "unless": ["no refund"],
                    "insist": "i",
                    "thanks": "t",
                    "example": "e",
                }
            ]
        ),
        "row",
    ).needs[0]
    assert need.is_met_by("Your money back within a week")
    assert not need.is_met_by("Your money back soon")
    assert not need.is_met_by("In ten days")
    assert not need.is_met_by("There is no refund after 30 days")


def test_scenarios_are_many_and_different():
    assert len(SHIPPED) == 24
    assert len({s.id for s in SHIPPED}) == len({s.domain for s in SHIPPED}) == 24
    lines = [line for s in SHIPPED for line in lines_of(s)]
    assert len(set(lines)) / len(lines) > 0.99
    assert {len(s.needs) for s in SHIPPED} == {2, 3}


def lines_of(scenario):
    asked = [line for need in scenario.needs for line in (need.ask, need.insist, need.thanks) if line]
    return [scenario.opening, scenario.closing, scenario.offended, *asked]


@each_scenario
def test_each_example_meets_its_own_need_and_no_other(scenario):
    for example in scenario.needs:
        assert [need.name for need in scenario.needs if need.is_met_by(example.example)] == [example.name]
        assert not mentions_any(example.example, scenario.avoid)


@each_scenario
def test_one_good_response_can_meet_all_needs(scenario):
    response = " ".join(need.example for need in scenario.needs)
    assert all(need.is_met_by(response) for need in scenario.needs)
    assert len(response.split()) <= 60


@each_scenario
def test_repeating_the_customer_or_saying_nothing_earns_nothing(scenario):
    for response in [*lines_of(scenario), "", "Thank you for your message."]:
        assert not any(need.is_met_by(response) for need in scenario.needs), response


@each_scenario
def test_phrases_to_avoid_exist_and_are_not_the_customers_own(scenario):
    assert scenario.avoid
    assert not any(mentions_any(line, scenario.avoid) for line in lines_of(scenario))


def test_files_are_read_line_by_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(row())}\n\n{json.dumps(row(id='y'))}\n", encoding="utf-8")
    assert [s.id for s in load_scenarios(path)] == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no scenario"),
        ("{", "line 1: not JSON"),
        ("[]", "line 1: expected an object"),
        (f"{json.dumps(row())}\n{json.dumps(row(closing=''))}", "line 2: 'closing' is ''"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TextEnvError, match=message) as caught:
        load_scenarios(path)
    assert "bad.jsonl" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TextEnvError, match=r"nowhere\.jsonl.*cannot be read"):
        load_scenarios(tmp_path / "nowhere.jsonl")


NEED = row()["needs"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opening": None}, "'opening' is None"),
        ({"opennig": "x"}, "unknown key 'opennig'; did you mean opening"),
        ({"zzz": "x"}, "unknown key 'zzz'; allowed are"),
        ({"needs": []}, "'needs' is \\[\\]; it must be a list of at least one need"),
        ({"needs": ["greet"]}, r"needs\[0\]: expected an object"),
        ({"needs": [{**NEED, "ask": "Will you?"}]}, r"needs\[0\]: unknown key 'ask'"),
        ({"needs": [NEED, {**NEED, "name": "b"}]}, r"needs\[1\]: 'ask' is None"),
        ({"needs": [NEED, {**NEED, "ask": "?"}]}, "two needs have the same name"),
        ({"needs": [{**NEED, "mentions": []}]}, "'mentions' is \\[\\]"),
        ({"needs": [{**NEED, "mentions": [[]]}]}, "an empty list, which no response could satisfy"),
        ({"needs": [{**NEED, "mentions": ["hello"]}]}, "'mentions' holds 'hello'"),
        ({"needs": [{**NEED, "unless": ["*"]}]}, "'unless' holds"),
        ({"avoid": "calm down"}, "'avoid' holds 'calm down'"),
    ],
)
def test_malformed_scenarios_name_key_and_value(changes, message):
    with pytest.raises(TextEnvError, match=message) as caught:
        parse_scenario(row(**changes), "scenarios[4]")
    assert "scenarios[4]" in str(caught.value)
