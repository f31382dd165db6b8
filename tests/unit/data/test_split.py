"""Splitting by the hash of the prompt: disjoint, proportionate, and the same in every order, file and process."""

import subprocess
import sys
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data import Prompt
from rlhf.data.split import in_hash_order, in_subset, prompt_key, split_of

PROMPTS = [f"prompt number {number}" for number in range(4000)]


def test_shares_are_those_of_the_configuration() -> None:
    names = [split_of(prompt, 0.1, 0.3) for prompt in PROMPTS]
    # three standard deviations of a binomial share: 3 * sqrt(p (1 - p) / 4000)
    assert names.count("validation") / 4000 == pytest.approx(0.1, abs=3 * (0.1 * 0.9 / 4000) ** 0.5)
    assert names.count("test") / 4000 == pytest.approx(0.3, abs=3 * (0.3 * 0.7 / 4000) ** 0.5)


def test_halves_are_disjoint_and_complete_and_independent_of_the_split() -> None:
    first = [prompt for prompt in PROMPTS if in_subset(prompt, "first_half")]
    second = [prompt for prompt in PROMPTS if in_subset(prompt, "second_half")]
    assert sorted(first + second) == sorted(PROMPTS)
    assert all(in_subset(prompt, "all") for prompt in PROMPTS)
    assert len(first) == pytest.approx(2000, abs=3 * 1000**0.5)
    for half in (first, second):
        share = sum(split_of(prompt, 0.5, 0.0) == "validation" for prompt in half) / len(half)
        assert share == pytest.approx(0.5, abs=0.035)


def test_order_is_independent_of_split_and_half() -> None:
    rows = in_hash_order(Prompt(prompt) for prompt in PROMPTS)[:1000]
    assert sum(split_of(row.prompt, 0.5, 0.0) == "train" for row in rows) == pytest.approx(500, abs=3 * 250**0.5)
    assert sum(in_subset(row.prompt, "first_half") for row in rows) == pytest.approx(500, abs=3 * 250**0.5)


def test_order_does_not_depend_on_the_order_of_rows() -> None:
    rows = [Prompt(prompt, {"n": n}) for prompt in PROMPTS[:50] for n in (1, 2)]
    assert in_hash_order(rows) == in_hash_order(reversed(rows))
    assert [row.prompt for row in in_hash_order(rows)] != PROMPTS[:50]


def test_fraction_zero_gives_no_row() -> None:
    assert {split_of(prompt, 0.0, 0.0) for prompt in PROMPTS} == {"train"}
    assert {split_of(prompt, 0.0, 0.5) for prompt in PROMPTS} == {"train", "test"}


@settings(deadline=None)  # a loaded machine is no failure
@given(st.text(min_size=1), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.1))
def test_a_held_out_prompt_stays_where_it_is_when_fractions_grow(
    prompt: str, validation: float, test: float, more: float
) -> None:
    before = split_of(prompt, validation, test)
    if before != "train":
        assert split_of(prompt, validation + more, test + more) == before


def test_equal_prompts_are_told_by_what_a_template_makes_of_them() -> None:
    assert prompt_key("Hello ") == prompt_key([{"role": "user", "content": "\nHello"}])
    assert prompt_key("Hello") != prompt_key("hello")
    assert prompt_key("Hello") != prompt_key([{"role": "system", "content": "Hello"}])
    one = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert prompt_key(one) != prompt_key("a b")


def test_another_process_splits_alike() -> None:
    code = "from rlhf.data.split import split_of; print(*(split_of(f'p{n}', 0.3, 0.3) for n in range(64)))"
    python = [sys.executable, "-W", "error", "-c", code]
    printed = subprocess.run(python, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}).stdout
    assert printed.split() == [split_of(f"p{n}", 0.3, 0.3) for n in range(64)]


def test_the_split_never_changes_between_versions() -> None:
    # By hand from the definition: BLAKE2b-64 with personalisation "split" of [["user", prompt]], first 48 bits / 2^48.
    for prompt in PROMPTS[:100]:
        digest = blake2b(f'[["user", "{prompt}"]]'.encode(), digest_size=8, person=b"split").hexdigest()
        share = int(digest[:12], 16) / 2**48
        assert split_of(prompt, 0.2, 0.3) == ("test" if share < 0.3 else "validation" if share >= 0.8 else "train")
