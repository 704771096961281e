"""The page against a server whose engine does less: it shows what works, and else the server's words."""

from __future__ import annotations

import contextlib
from pathlib import Path

from playwright.sync_api import Browser, expect

from server.engine.engine import EngineSettings
from server.engine.errors import InvalidWork
from server.engine.model import LoadedModel
from server.engine.request import EngineRequest, OutputSink
from tests.server.api.serving import serving, tiny_module, vector
from tests.server.engine.contract.naive import NaiveEngine
from tests.server.page.browsing import tab

WORDS = "this engine has no gates"


class GatelessEngine(NaiveEngine):
    """The naive engine without gates."""

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """Refuses what has gates."""
        if request.plan.gated:
            raise InvalidWork(WORDS, "steering")
        super().submit(request, sink)


def gateless(model: LoadedModel, _: EngineSettings) -> contextlib.AbstractContextManager[NaiveEngine]:
    """That engine, of the same weights."""
    return contextlib.closing(GatelessEngine(tiny_module(), model.info))


def test_what_another_engine_refuses_is_said_in_its_words_and_the_rest_works(browser: Browser, tmp_path: Path) -> None:
    with (
        serving(tmp_path, engine_class=gateless) as running,
        tab(browser, running.url, may_be_refused=True) as opened,
    ):
        running.store.put("calm", vector(1))
        page = opened.page
        opened.open()
        page.get_by_label("Most tokens").fill("5")
        opened.ask("hi")
        asked = opened.asked("/v1/chat/completions")
        expected = [
            running.http.post("/v1/chat/completions", json={**body, "stream": False}).json()["choices"][0]
            for body in asked
        ]
        assert [opened.text_of(number) for number in (0, 1)] == [each["message"]["content"] for each in expected]
        page.get_by_text("Layers, positions, operation, gate").click()
        page.get_by_label("Only where a probe says so").select_option("calm")
        page.get_by_role("button", name="Run again").click()
        expect(opened.answers.nth(1).get_by_role("alert")).to_contain_text(WORDS)
        opened.wait_for_answers()
        assert opened.text_of(0) == expected[0]["message"]["content"]
        expect(page.locator("tiller-strip")).to_contain_text("0 running")
        page.get_by_role("link", name="Watch").click()
        expect(page.locator("tiller-watch")).to_contain_text("–")  # an engine without pages has no share of them
