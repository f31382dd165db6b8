"""Numbers and conversations for people."""

import math

import pytest

from rlhf.tracking.text import as_text, decimals_for, number, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.12345, "0.123"),
        (12.0, "12"),
        (-3.14159, "\N{MINUS SIGN}3.14"),
        (999.7, "1,000"),
        (1234567.0, "1,234,567"),
        (0.000025, "2.5e\N{MINUS SIGN}5"),
        (None, "\N{EN DASH}"),
        (math.nan, "\N{EN DASH}"),
        (math.inf, "\N{EN DASH}"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "+0.50"), (-0.5, "\N{MINUS SIGN}0.50"), (0.0, "0.00"), (None, "\N{EN DASH}")]
)
def test_signs(value, text):
    assert signed(value, 2) == text


@pytest.mark.parametrize(
    ("values", "places"), [([0.5, -0.9], 3), ([0.01, -1.5], 2), ([99.9], 1), ([100.0, None, math.nan], 0), ([], 3)]
)
def test_decimals_follow_the_largest_value(values, places):
    assert decimals_for(values) == places


def test_messages_are_paragraphs():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert as_text(messages) == "system: Be brief.\nuser: Hi"
    assert as_text("Hi") == "Hi"
