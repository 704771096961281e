"""Gates and probes on the page, and many columns in one request, with the embedded model in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.server.api.serving import Server
from tests.server.page.browsing import Tab, tab

CHAT = "/v1/chat/completions"
MUSIC = "Do you like music?"
STRENGTHS = (
    "spans => spans.map((span) => (span.classList.contains('low') ? -1 : 1) * "
    "Number(span.style.getPropertyValue('--strength')))"
)
GATE = {"probe": "honest", "above": -0.2, "latch": "rest"}


def short(number: float) -> str:
    """A number as the page shows it."""
    return f"{number:.4g}".replace("-", "−")


def test_a_gate_and_probes_are_set_up_sent_and_shown(opened: Tab, server: Server, pictures: Path) -> None:
    page = opened.page
    page.get_by_text("Layers, positions, operation, gate").click()
    page.get_by_label("Only where a probe says so").select_option("honest")
    gate = page.get_by_role("group", name="Gate of cheerful")
    gate.get_by_label("Threshold").fill("-0.2")
    gate.get_by_label("Once open, open to the end").check()
    page.get_by_text("Probes and colours").click()
    page.get_by_label("Vector to read").select_option("honest")
    page.get_by_role("button", name="Read", exact=True).click()
    page.get_by_label("Layers where honest is read").fill("2-3")
    page.get_by_label("Colour tokens by").select_option("honest.3")
    opened.ask(MUSIC)
    plain, steered = opened.asked(CHAT)
    assert steered["steering"] == [{"vector": "cheerful", "scale": 0.6, "when": GATE}]
    assert "steering" not in plain
    assert plain["probes"] == steered["probes"] == [{"vector": "honest", "layers": "2-3"}]
    (choice,) = server.http.post(CHAT, json={**steered, "stream": False}).json()["choices"]
    (count,), told = choice["gates"], choice["probes"]["honest.3"]
    plan = opened.answers.nth(1).locator(".plan").first
    expect(plan).to_contain_text(
        f"where honest (layer 3) is above −0.2 · then to the end · on {count['open']} of {count['of']} tokens"
    )
    expect(opened.answers.nth(1)).to_contain_text(
        f"honest.3 layer 3 · mean {short(told['mean'])} · max {short(told['max'])} · {told['above']} above 0"
    )
    spans = opened.answers.nth(1).locator(".token")
    shown: list[Any] = spans.evaluate_all(STRENGTHS)
    assert shown == pytest.approx(told["scores"][: len(shown)], abs=1e-4)  # the token that ends has no text
    others: list[float] = opened.answers.nth(0).locator(".token").evaluate_all(STRENGTHS)
    reach = page.locator(".turns").evaluate("turns => Number(turns.style.getPropertyValue('--reach'))")
    assert reach == pytest.approx(max(map(abs, [*shown, *others])))  # one scale for all columns
    spans.nth(2).click()
    scores = page.get_by_role("list", name="Scores").get_by_role("listitem")
    expected = [(name, each["layer"], each["scores"][2]) for name, each in choice["probes"].items()]
    expect(scores).to_have_text([f"{name} layer {layer}{short(score)}" for name, layer, score in expected])
    opened.check_access()
    opened.picture(pictures / "probes.png")
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    opened.page.reload()  # the link has all of it
    expect(plan).to_contain_text(f"on {count['open']} of {count['of']} tokens")
    expect(page.get_by_label("Colour tokens by")).to_have_value("honest.3")
    expect(gate.get_by_label("Threshold")).to_have_value("-0.2")
    page.get_by_role("button", name="Run again").click()
    opened.wait_for_answers()
    again = opened.asked(CHAT)[2:]
    assert [{**body, "seed": plain["seed"]} for body in again] == [plain, steered]


def test_eight_columns_are_one_request_and_each_goes_on_from_its_own_answer(opened: Tab) -> None:
    page = opened.page
    page.get_by_role("button", name="Fan").click()
    page.get_by_label("Scales, up to eight").fill("-0.9 -0.6 -0.3 0 0.3 0.6 0.9 1.2 1.5")
    opened.ask(MUSIC)
    expect(opened.answers).to_have_count(8)
    (body,) = opened.sent(CHAT)
    assert [each["steering"][0]["scale"] for each in body["variants"]] == [-0.9, -0.6, -0.3, 0, 0.3, 0.6, 0.9, 1.2]
    first = [opened.text_of(number) for number in range(8)]
    assert len(set(first)) > 1
    opened.ask("And winter?")
    histories = [each["messages"] for each in opened.asked(CHAT)[8:]]
    assert [messages[1]["content"] for messages in histories] == first
    assert len(opened.sent(CHAT)) == 2


def test_columns_that_are_refused_say_why_and_the_others_are_written(browser: Browser, server: Server) -> None:
    """Whatever the status: layers that the vector lacks (400), a vector that is gone by now (404)."""
    with tab(browser, server.url, may_be_refused=True) as opened:
        page = opened.page
        page.get_by_role("button", name="A / B").click()
        opened.ask(MUSIC)
        (written, _) = [opened.text_of(number) for number in (0, 1)]
        expect(page.get_by_role("heading", name="Vectors of B")).to_be_visible()
        details = page.locator(".side > section", has=page.get_by_role("heading", name="Vectors of B")).locator(
            "details"
        )
        details.locator("summary").click()
        details.get_by_label("Layers", exact=True).fill("99")
        page.get_by_role("button", name="Run again").click()
        refused = opened.answers.nth(1).get_by_role("alert")
        expect(refused).to_contain_text("99")
        opened.wait_for_answers()
        answer = server.http.post(CHAT, json=opened.sent(CHAT)[1])
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "variants.1.steering.0.layers"
        expect(refused.locator("strong")).to_have_text(error["message"])
        assert opened.text_of(0) == written
        details.get_by_label("Layers", exact=True).fill("")
        server.store.remove("honest")
        page.get_by_role("button", name="Run again").click()
        expect(refused).to_contain_text("honest")
        opened.wait_for_answers()
        answer = server.http.post(CHAT, json=opened.sent(CHAT)[3])
        assert answer.status_code == 404
        expect(refused.locator("strong")).to_have_text(answer.json()["error"]["message"])
        assert opened.text_of(0) == written
        assert [len(body.get("variants", "1")) for body in opened.sent(CHAT)] == [2, 2, 1, 2, 1]
