"""UnicodeText: membership, sampling and equality."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Text
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import UnicodeText


@settings(deadline=None)
@given(st.text(max_size=50))
def test_contains_every_unicode_string_within_the_length(text):
    assert text in UnicodeText(50)
    assert (text in UnicodeText(10)) == (len(text) <= 10)
    assert (text in UnicodeText(50, min_length=3)) == (len(text) >= 3)


@pytest.mark.parametrize("x", [b"bytes", 3, None, ["a"], "half \ud83d pair", "\udfff"])
def test_refuses_what_is_no_unicode_text(x):
    assert x not in UnicodeText(50)


def test_length_counts_code_points():
    assert "\U0001f600" * 5 in UnicodeText(5)


@pytest.mark.parametrize(("longest", "shortest"), [(1_000_000, 0), (5, 0), (5, 5), (0, 0), (500, 300)])
def test_samples_lie_in_the_space_and_stay_short(longest, shortest):
    space = UnicodeText(longest, min_length=shortest, seed=1)
    samples = [space.sample() for _ in range(200)]
    assert all(sample in space for sample in samples)
    assert all(shortest <= len(sample) <= shortest + 64 for sample in samples)
    assert len({len(sample) for sample in samples}) > 1 or longest == shortest


def test_samples_go_beyond_ascii():
    space = UnicodeText(seed=0)
    assert not "".join(space.sample() for _ in range(50)).isascii()


def test_same_seed_same_samples():
    one, two, other = UnicodeText(seed=4), UnicodeText(), UnicodeText(seed=5)
    two.seed(4)
    first = [one.sample() for _ in range(5)]
    assert first == [two.sample() for _ in range(5)]
    assert first != [other.sample() for _ in range(5)]


def test_sample_accepts_gymnasiums_masks():
    space = UnicodeText(seed=0)
    only_b = np.array([c == "b" for c in space.character_list], dtype=np.int8)
    assert space.sample(mask=(4, only_b)) == "bbbb"
    assert space.sample(probability=(3, only_b.astype(np.float64))) == "bbb"


def test_equality_is_by_lengths_and_not_shared_with_text():
    assert UnicodeText(5) == UnicodeText(5, seed=3)
    assert UnicodeText(5) != UnicodeText(6)
    assert UnicodeText(5) != UnicodeText(5, min_length=1)
    plain = Text(5, min_length=0, charset=UnicodeText(5).characters)
    assert UnicodeText(5) != plain
    assert plain != UnicodeText(5)


def test_repr_names_the_lengths():
    assert repr(UnicodeText(7, min_length=2)) == "UnicodeText(7, min_length=2)"
    assert eval(repr(UnicodeText(7, min_length=2))) == UnicodeText(7, min_length=2)


def test_copies_pickles_and_batches():
    space = UnicodeText(9, min_length=1)
    assert copy.deepcopy(space) == space
    assert pickle.loads(pickle.dumps(space)) == space
    assert ("caf\u00e9", "\u4f60") in batch_space(space, 2)
    assert not space.is_np_flattenable


@pytest.mark.parametrize("lengths", [{"max_length": -1}, {"max_length": 2, "min_length": 3}, {"min_length": -1}])
def test_impossible_lengths_are_refused(lengths):
    with pytest.raises((ValueError, AssertionError), match="length"):  # Gymnasium asserts before 1.4
        UnicodeText(**lengths)


ASYNC = {"vectorization_mode": "async", "vector_kwargs": {"shared_memory": False}}


@pytest.mark.parametrize("options", [{"vectorization_mode": "sync"}, ASYNC])
def test_gymnasiums_own_vector_environments_show_what_was_said(options):
    prompts = ["Gr\u00fc\u00dfe, \u4f60\u597d \U0001f600!"]
    envs = gymnasium.make_vec("rlhf/Prompts-v0", num_envs=2, prompts=prompts, **options)
    try:
        assert envs.reset(seed=0)[0] == (prompts[0], prompts[0])
        assert envs.step(["x", "y"])[2].tolist() == [True, True]
    finally:
        envs.close()


def test_shared_memory_is_refused_with_the_way_out():
    """Gymnasium would show letters of a finite alphabet there, or nothing at all."""
    with pytest.raises(ValueError, match=r"you can disable this feature with `shared_memory=False`") as caught:
        gymnasium.make_vec("rlhf/Prompts-v0", num_envs=2, vectorization_mode="async")
    assert "vector_kwargs={'shared_memory': False}" in str(caught.value.__cause__)
