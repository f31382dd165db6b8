"""The page of tokens: the right responses, the right colours, and hostile text stays text. And what histograms hold."""

import math
from html.parser import HTMLParser

import pytest

from rlhf.tracking.pictures import histograms, token_page


def row(index, score, texts=("a", "b"), rewards=(0.0, 1.0), **more):
    numbers = {"kl": 0.5, "value": 0.5, "advantage": -2.0}
    tokens = [{"id": 7, "text": text, "reward": reward, **numbers} for text, reward in zip(texts, rewards, strict=True)]
    return {
        "index": index,
        "prompt": f"prompt {index}",
        "score": score,
        "reward": sum(rewards),
        "kl": 0.5 * len(texts),
        "length": len(texts),
        "stop_reason": "eos",
        "tokens": tokens,
        **more,
    }


class Spans(HTMLParser):
    """Collects what stands in each token's span, and every tag."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.spans, self.titles = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "span":
            self.spans.append(("", dict(attributes)))
        if tag == "h2":
            self.titles.append("")
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "span":
            text, attributes = self.spans[-1]
            self.spans[-1] = (text + data, attributes)
        if self.inside == "h2":
            self.titles[-1] += data


def test_best_worst_and_random_responses_are_shown():
    rows = [row(i, score) for i, score in enumerate([0.5, -3.0, 2.0, 0.1, 0.2, 0.3, 0.4])]
    found = Spans(token_page(rows, 3))
    assert [title.partition(":")[0] for title in found.titles] == ["best", "worst", "random 1", "random 2", "random 3"]
    assert found.titles[0] == "best: score +2"
    assert found.titles[1].endswith("\N{MINUS SIGN}3")
    assert token_page(rows, 3) == token_page(rows, 3)


def test_a_token_carries_its_numbers_and_its_shade():
    found = Spans(token_page([row(0, 1.0, texts=("Hi", " you"), rewards=(-0.25, 1.0))], 1))
    assert [text for text, _ in found.spans] == ["Hi", " you"]
    first, second = (attributes for _, attributes in found.spans)
    assert first["title"] == "reward \N{MINUS SIGN}0.25, KL +0.5, value +0.5, advantage \N{MINUS SIGN}2"
    assert "--c0:rgba(205,50,40,0.15)" in first["style"]  # a quarter of the largest, below 0
    assert "--c0:rgba(30,140,60,0.60)" in second["style"]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&lt;b&gt;</div>"])
def test_hostile_text_stays_text(text):
    hostile = row(0, 1.0, texts=(text, "ok"), prompt=text, stop_reason=text, **{f"component/{text}": 1.0})
    found = Spans(token_page([hostile], 1))
    assert found.spans[0][0] == text
    assert found.tags <= {"meta", "title", "style", "b", "input", "label", "section", "h2", "p", "div", "span"}


def test_a_part_of_a_character_is_shown_by_its_id():
    assert [text for text, _ in Spans(token_page([row(0, 1.0, texts=("", "\u00e4"))], 1)).spans] == ["[7]", "\u00e4"]


def test_without_token_numbers_there_is_no_page():
    assert token_page([{"index": 0, "prompt": "p", "score": 1.0}], 1) is None
    assert token_page([], 1) is None


def test_histograms_hold_finite_values_of_episodes_and_tokens():
    unscored = {"index": 2, "prompt": "p", "score": math.nan, "kl": None, "length": 3}
    found = {name: values.tolist() for name, values in histograms([row(0, 1.0), unscored]).items()}
    assert found["reward"] == [1.0]
    assert found["kl"] == [1.0]
    assert found["length"] == [2.0, 3.0]
    assert found["advantage"] == [-2.0, -2.0]
    assert found["ratio_to_reference"] == pytest.approx([math.exp(0.5)] * 2, abs=1e-12)
