"""Makes the pictures of docs/inspect.md from a run, with the extra `browser`.

python docs/screenshots.py runs/quickstart
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from rlhf.report.report import build_report

DOCS = Path(__file__).parent
COLOURS = 200  # few are enough for a page, and keep the files small


def save(page: Page, name: str) -> None:
    """Takes what is in view."""
    page.wait_for_timeout(400)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS)
    picture.save(DOCS / name, optimize=True)


def main(run: str) -> None:
    """The worst response of the last iteration token by token, and the curves."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 720})
        page.goto(build_report(run).resolve().as_uri())
        page.wait_for_selector("body[data-rollouts=ready]")
        page.evaluate("document.getElementById('curves-ppo').scrollIntoView()")
        save(page, "page-curves.png")
        page.evaluate("document.getElementById('rollouts').scrollIntoView()")
        page.fill("[name=first]", page.get_attribute("[name=last]", "placeholder") or "1")
        page.wait_for_selector("#rollout-count:has-text(' of ')")
        page.click("[data-view='score asc']")
        page.locator(".tabulator-row .open").first.click()
        page.locator("dialog label", has_text="Advantage").click()
        save(page, "page-tokens.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
