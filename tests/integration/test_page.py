"""The page in a real browser: it opens without a complaint, filters, sorts, shows tokens, and hostile text stays text.

Needs the package playwright and a Chromium of the system (Debian: `apt-get install chromium`); skipped without them.
"""

import shutil

import pytest

from rlhf.report.report import build_report
from rlhf.tracking import rollouts
from rlhf.tracking.jsonl import JsonlSink

playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="this machine has no Chromium")]

EVIL = '</script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">{{ 7*7 }}'
ITERATIONS, EPISODES = 3, 40
MINUS = "\N{MINUS SIGN}"


def tokens(*rewards):
    texts = [" one", " two", EVIL, "<|end|>"]
    return [
        {"id": n, "text": texts[n], "turn": 1, "logprob": -1.0, "ref_logprob": -1.5, "kl": 0.5, "reward_score": reward,
         "reward_penalty": 0.0, "reward_kl": 0.0, "reward": reward, "value": 0.25, "advantage": -reward}
        for n, reward in enumerate(rewards)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Scores rise with the number of the prompt and with the iteration; the worst token is the third one."""
    folder = tmp_path_factory.mktemp("runs") / "page"
    folder.mkdir()
    sink = JsonlSink(folder, "ppo")
    for iteration in range(1, ITERATIONS + 1):
        sink.log({"ppo/score": float(iteration), "ppo/kl": 0.1, f"ppo/components/{EVIL}": 1.0}, iteration)
        rows = [
            {"index": n, "prompt": f"question {n} {EVIL}", "response": f"answer {n}", "score": n / 10 + iteration,
             "reward": -1.0, "kl": 0.5, "length": n + 1, "stop_reason": "eos" if n % 2 else "length",
             f"component/{EVIL}": float(n), "tokens": tokens(0.0, 0.25, -2.5, 1.0)}
            for n in range(EPISODES)
        ]  # fmt: skip
        rollouts.write(folder, rollouts.typed_rows(rows, iteration), iteration)
    sink.close()
    (folder / "config.yaml").write_text(f"name: page  # {EVIL}\n", encoding="utf-8")
    return build_report(folder)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, page_file):
    """The page, opened; afterwards the browser must have had nothing to complain of."""
    complaints = []
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    tab.goto(page_file.as_uri())
    tab.wait_for_selector("body[data-rollouts=ready]")
    yield tab
    assert tab.title() == "page"
    tab.close()
    assert complaints == []


def column(page, name):
    return page.locator(f".tabulator-row .tabulator-cell[tabulator-field={name}]").all_inner_texts()


def shows(page, text):
    playwright.expect(page.locator("#rollout-count")).to_have_text(text)


def test_all_episodes_are_there_and_a_search_finds_one_prompt_in_every_iteration(page):
    shows(page, f"{ITERATIONS * EPISODES} episodes")
    page.fill("[name=search]", "Question 17 ")
    shows(page, f"{ITERATIONS} of 120 episodes")
    assert column(page, "iteration") == ["1", "2", "3"]
    assert column(page, "response") == ["answer 17"] * 3
    page.click("text=Clear")
    shows(page, "120 episodes")


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"first": "2", "last": "2"}, 40),
        ({"prompt": "5"}, 3),
        ({"low": "3.5", "high": "3.9"}, 15),
        ({"first": "3", "low": "3.5", "high": "3.9"}, 5),
    ],
)
def test_filters_keep_what_fits(page, fields, count):
    expected = [
        (n / 10 + i)
        for i in range(1, 4)
        for n in range(EPISODES)
        if int(fields.get("first", 1)) <= i <= int(fields.get("last", 3))
        and ("prompt" not in fields or n == int(fields["prompt"]))
        and float(fields.get("low", "-9")) <= round(n / 10 + i, 5) <= float(fields.get("high", "99"))
    ]
    assert len(expected) == count
    for name, value in fields.items():
        page.fill(f"[name={name}]", value)
    shows(page, f"{count} of 120 episodes")


def test_stop_reason_length_and_component_filter(page):
    page.select_option("[name=stop]", "length")
    shows(page, "60 of 120 episodes")
    page.select_option("[name=column]", "length")
    page.fill("[name=high]", "5")  # prompts 0, 2, 4 of each iteration
    shows(page, "9 of 120 episodes")
    page.select_option("[name=column]", f"component/{EVIL}")
    page.fill("[name=high]", "2")
    shows(page, "6 of 120 episodes")


def test_sorting_by_button_and_by_column(page):
    page.click("[data-view='score asc']")
    playwright.expect(page.locator("[tabulator-field=score][role=columnheader]")).to_have_attribute(
        "aria-sort", "ascending"
    )
    assert column(page, "score")[:3] == ["1", "1.1", "1.2"]
    page.click(".tabulator-col[tabulator-field=length]")
    page.click(".tabulator-col[tabulator-field=length]")
    playwright.expect(page.locator(".tabulator-cell[tabulator-field=length]").first).to_have_text("40")


def test_the_token_that_was_punished_in_the_worst_response_of_iteration_3(page):
    page.fill("[name=first]", "3")
    shows(page, "40 of 120 episodes")
    page.click("[data-view='score asc']")
    page.locator(".tabulator-row .open").first.click()
    dialog = page.locator("dialog[open]")
    playwright.expect(dialog.locator("h3")).to_have_text("Iteration 3, prompt 0")
    assert dialog.locator(".token").all_inner_texts() == [" one", " two", EVIL, "<|end|>"]
    chosen = dialog.locator(".token.chosen")
    assert chosen.inner_text() == EVIL  # opened at the lowest reward
    assert f"{MINUS}2.5" in chosen.get_attribute("aria-label")
    assert f"Reward\n{MINUS}2.5" in dialog.locator("[data-part=token]").inner_text()
    assert dialog.locator(".token.low").count() == 1


def test_tokens_by_keyboard_and_by_pointer(page):
    page.locator(".tabulator-row .open").first.focus()
    page.keyboard.press("Enter")
    details = page.locator("[data-part=token]")
    playwright.expect(details).to_contain_text("token 3 of 4")
    page.locator(".token.chosen").focus()
    page.keyboard.press("ArrowLeft")
    playwright.expect(details).to_contain_text("token 2 of 4")
    page.locator(".token").last.hover()
    playwright.expect(details).to_contain_text("token 4 of 4")
    page.keyboard.press("j")
    playwright.expect(page.locator("dialog h3")).to_have_text("Iteration 1, prompt 1")
    page.locator("dialog label", has_text="Advantage").click()
    assert page.locator(".token.low").count() == 2  # those with a reward above 0
    page.keyboard.press("Escape")
    playwright.expect(page.locator("dialog")).not_to_be_visible()


def test_curves_show_their_values_on_hover(page):
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    over = plot.locator(".u-over")
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 20)
    playwright.expect(plot.locator(".u-legend")).to_contain_text("score3")
    assert "score from 1 to 3" in plot.get_attribute("aria-label")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_nothing_is_wider_than_the_screen(browser, page_file, width, scheme):
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.goto(page_file.as_uri())
    tab.wait_for_selector("body[data-rollouts=ready]")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    # At once: on a narrow screen columns fold after the table is ready, and a click is two events.
    tab.locator(".tabulator-row .open").first.dispatch_event("click")
    assert tab.locator("dialog[open]").bounding_box()["width"] <= width
    tab.close()
