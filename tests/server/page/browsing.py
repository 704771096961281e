"""What the tests of the page do with a browser's tab, and what must hold of every tab."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect

from tests.server.cli.running import DEADLINE

MILLISECONDS = 1000 * DEADLINE
_STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

expect.set_options(timeout=MILLISECONDS)


@dataclass
class Tab:
    """A tab and all that it sent and said."""

    page: Page
    url: str
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def hear(self, said: ConsoleMessage) -> None:
        """Keep what the browser's console complains about."""
        if said.type in ("error", "warning"):
            self.complaints.append(f"console {said.type}: {said.text}")

    def open(self, view: str = "") -> None:
        """Load the page anew, at a view such as `#keep`."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/{view}")

    @property
    def answers(self) -> Locator:
        """The cards of the last message."""
        return self.page.locator(".turn").last.locator("tiller-answer")

    def wait_for_answers(self) -> None:
        """Until every answer that was asked for is there."""
        expect(self.page.locator("tiller-answer.running")).to_have_count(0)
        expect(self.page.locator(".composer .stop")).to_be_hidden()

    def ask(self, text: str) -> None:
        """Send a message and wait for its answers."""
        self.page.get_by_role("textbox", name="Message", exact=True).fill(text)
        self.page.get_by_role("button", name="Send").click()
        self.wait_for_answers()

    def text_of(self, number: int) -> str:
        """What answer `number` of the last message says."""
        tokens = self.answers.nth(number).locator(".token")
        return "".join(tokens.evaluate_all("tokens => tokens.map((token) => token.textContent)"))

    def sent(self, path: str) -> list[dict[str, Any]]:
        """The JSON bodies that were posted to a path."""
        bodies = [each.post_data_json for each in self.requests if each.method == "POST" and each.url.endswith(path)]
        return [body for body in bodies if isinstance(body, dict)]

    def asked(self, path: str) -> list[dict[str, Any]]:
        """The same with a body of its own for each variant of a request, without steering where there is none."""
        found = []
        for body in self.sent(path):
            common = {name: value for name, value in body.items() if name != "variants"}
            found += [{**common, **variant} for variant in body.get("variants", [{}])]
        return [{name: value for name, value in body.items() if (name, value) != ("steering", [])} for body in found]

    def check_access(self) -> None:
        """Raise unless axe-core finds nothing against WCAG 2.2 A and AA."""
        self.page.evaluate(_axe())
        options = {"runOnly": {"type": "tag", "values": _STANDARDS}}
        found = self.page.evaluate("options => axe.run(document, options)", options)
        assert found["passes"]
        said = [
            f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
            for each in found["violations"]
            for node in each["nodes"]
        ]
        assert not said, said

    def picture(self, path: Path) -> None:
        """Keep a picture of what is seen."""
        self.page.mouse.move(0, 0)
        self.page.screenshot(path=path)


def chromium() -> str | None:
    """The path of the system's Chromium, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def tab(
    browser: Browser,
    url: str,
    *,
    scheme: Literal["light", "dark"] = "light",
    width: int = 1280,
    height: int = 800,
    may_be_refused: bool = False,
) -> Iterator[Tab]:
    """A tab of its own, without anything stored.

    At the end nothing was asked of another host, and no error stood in the console, where the browser also writes
    requests that are refused: `may_be_refused` allows those.
    """
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
    context.set_default_timeout(MILLISECONDS)
    page = context.new_page()
    found = Tab(page, url)
    page.on("request", lambda request: found.requests.append(request))
    page.on("pageerror", lambda error: found.complaints.append(f"error: {error}"))
    page.on("console", found.hear)
    try:
        page.goto(f"{url}/")
        yield found
    finally:
        context.close()
    foreign = {each.url for each in found.requests if not each.url.startswith((url, "blob:", "about:", "data:"))}
    assert not foreign, foreign
    complaints = [said for said in found.complaints if not (may_be_refused and "Failed to load resource" in said)]
    assert not complaints, complaints


@functools.cache
def _axe() -> str:
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")
