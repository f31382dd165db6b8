"""The helpers that keep completions in the form of their prompts."""

from __future__ import annotations

import pytest

from reward_models.protocol import as_completion, completion_text


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("Hi", "Yes"), ([{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Yes"}])],
)
def test_completion_has_the_form_of_its_prompt(prompt, completion) -> None:
    assert as_completion(prompt, "Yes") == completion
    assert completion_text(completion) == "Yes"


def test_text_of_several_messages() -> None:
    messages = [{"role": "assistant", "content": "One."}, {"role": "assistant", "content": "Two."}]
    assert completion_text(messages) == "One.\nTwo."
