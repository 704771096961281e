"""Whatever a model, a file, a name or a link says stays text; keys stay in their tab; what is stopped stops."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from server.keys import ApiKeys
from tests.server.api.generation.dictating import serving_chats
from tests.server.api.serving import CHAT_TEMPLATE, Server, eventually, serving, vector
from tests.server.page.browsing import Tab, tab

MARKUP = "<img src=x onerror=alert(1)><script>alert(1)</script>&lt;b&gt; \u202eabc\u202c \u2066x\u2069 {{7*7}}"
LONG = "<b>" + "W" * 100_000
ARE_ELEMENTS = "document.querySelectorAll('main img, main script, main b:not(tiller-strip b, .rules b)').length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that says what it is told, with a vector that is described by markup."""
    with serving_chats(tmp_path_factory.mktemp("data"), CHAT_TEMPLATE) as running:
        running.store.put("calm", vector(1, 0))
        running.store.change("calm", {"description": MARKUP, "metadata": {"<script>": MARKUP}})
        yield running


@pytest.fixture(scope="module")
def server_url(server: Server) -> str:
    """Where the page is."""
    return server.url


def link_to(url: str, state: dict[str, Any]) -> str:
    """A link as the page makes them, to any state."""
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(json.dumps(state).encode()) + packer.flush()
    return f"{url}/#play:{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"


def test_what_a_model_and_a_registry_say_stays_text(opened: Tab) -> None:
    page = opened.page
    opened.ask(MARKUP)
    assert [opened.text_of(number) for number in (0, 1)] == [MARKUP, MARKUP]
    expect(page.locator(".said p")).to_have_text(MARKUP)
    assert page.evaluate(ARE_ELEMENTS) == 0
    opened.answers.nth(1).locator(".token").first.click()
    assert page.evaluate(ARE_ELEMENTS) == 0
    opened.open("#keep:calm")
    expect(page.locator(".description")).to_have_text(MARKUP)
    assert page.evaluate(ARE_ELEMENTS) == 0


def test_a_link_from_a_stranger_is_only_text(opened: Tab) -> None:
    page = opened.page
    answer = {"content": LONG, "reasoning": MARKUP, "calls": [MARKUP], "finish": "stop", "plan": [{"vector": MARKUP}]}
    entry = {"vector": MARKUP, "scale": 1e300, "layers": MARKUP, "operation": MARKUP}
    turn = {"user": LONG, "answers": [answer, answer], "next": {}, "at": 0}
    chat = {"next": [{"user": MARKUP, "next": MARKUP, "at": MARKUP}, turn, *[7] * 1000], "at": 1}
    state = {"chat": chat, "racks": [[entry]], "mode": MARKUP, "fan": 7}
    page.goto("about:blank")
    page.goto(link_to(opened.url, state))
    expect(opened.answers).to_have_count(2)
    assert opened.text_of(0) == MARKUP + LONG + MARKUP
    assert page.evaluate(ARE_ELEMENTS) == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert opened.sent("/chat/completions") == []
    expect(page.get_by_role("group", name="Versions of message 1")).to_contain_text("2 of 200")
    for broken in ("#play:%%%", "#play:AAAA", f"#play:{'A' * 5000}", "#nothing", "#keep:%2e%2e%2f"[:6]):
        opened.open(broken)
        expect(page.locator("main > *").first).to_be_visible()


def test_a_bomb_of_a_link_is_refused(opened: Tab) -> None:
    opened.page.goto("about:blank")
    opened.page.goto(link_to(opened.url, {"system": " " * 50_000_000}))
    expect(opened.page.get_by_role("alert")).to_have_text("This link is not one that the page understands.")


def test_a_file_is_only_text(browser: Browser, server: Server, tmp_path: Path) -> None:
    with tab(browser, server.url, may_be_refused=True) as opened:
        opened.open("#keep")
        file = tmp_path / "<img src=x onerror=alert(1)>.json"
        file.write_text(json.dumps({MARKUP: LONG}))
        opened.page.locator(".drop input").set_input_files(file)
        opened.page.get_by_role("button", name="Upload").click()
        expect(opened.page.get_by_role("alert")).to_be_visible()
        assert opened.page.evaluate("document.querySelectorAll('dialog img, dialog script').length") == 0


def test_stopping_a_column_stops_its_request_and_closing_the_tab_the_rest(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        running.store.put("calm", vector(1))
        with tab(browser, running.url) as opened:
            page = opened.page
            page.get_by_label("Most tokens").fill("480")
            page.get_by_role("textbox", name="Message", exact=True).fill("go")
            page.get_by_role("button", name="Send").click()
            page.get_by_role("button", name="Stop: Steered").click()
            expect(opened.answers.nth(1).locator(".state")).to_contain_text("stopped")
            opened.wait_for_answers()
            expect(opened.answers.nth(0).locator(".state")).to_contain_text("cut at the limit")
            eventually(running.is_idle)
            metrics = running.http.get("/metrics").text
            assert 'vllm:request_success_total{finished_reason="length",model_name="tiny"} 1.0' in metrics
            assert 'vllm:request_success_total{finished_reason="abort",model_name="tiny"} 1.0' in metrics
            assert running.engine.stats().total_generated_tokens < 2 * 480
            page.get_by_role("button", name="Run again").click()
            eventually(lambda: running.engine.stats().num_running == 2)
        eventually(running.is_idle)
        assert 'reason="length",model_name="tiny"} 1.0' in running.http.get("/metrics").text


def test_keys_open_the_server_for_one_tab_and_are_in_no_link(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, keys=ApiKeys(use=["use-key"], manage=["manage-key"]), key="manage-key") as locked:
        locked.store.put("confidential", vector(1))
        with tab(browser, locked.url, may_be_refused=True) as opened:
            page = opened.page
            dialog = page.get_by_role("dialog", name="This server asks for a key")
            expect(dialog).to_be_visible()
            assert "confidential" not in page.content()
            dialog.get_by_label("Use key").fill("use-key")
            dialog.get_by_role("button", name="Save").click()
            expect(page.locator("main")).to_contain_text("confidential")
            page.get_by_label("Most tokens").fill("3")
            opened.ask("hi")
            page.get_by_role("button", name="Copy link").click()
            expect(page.get_by_role("button", name="Copied")).to_be_visible()
            state = zlib.decompress(base64.urlsafe_b64decode(page.url.partition("#play:")[2] + "==="), wbits=-15)
            assert "key" not in state.decode()
            assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
            page.reload()
            expect(page.locator("main")).to_contain_text("confidential")


def test_a_model_without_a_chat_template_continues_texts(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, chat_template=None) as running, tab(browser, running.url, may_be_refused=True) as opened:
        page = opened.page
        expect(page.get_by_label("Endpoint")).to_have_value("text")
        page.get_by_label("Most tokens").fill("5")
        page.get_by_role("textbox", name="Prompt").fill("Once")
        page.get_by_role("button", name="Send").click()
        opened.wait_for_answers()
        (first, _) = opened.asked("/v1/completions")
        assert first["prompt"] == "Once"
        expected = running.http.post(
            "/v1/completions", json={"prompt": "Once", "temperature": 0, "max_tokens": 5}
        ).json()
        assert opened.text_of(0) == expected["choices"][0]["text"]
