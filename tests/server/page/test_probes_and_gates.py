"""Gates and probes on the page, and many columns in one request, with the embedded model in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect
from transformers import AutoTokenizer

from server.demo import MODEL_DIR, MODEL_NAME, VECTORS_DIR
from server.engine.model import load_model
from tests.server.api.serving import Server, serving
from tests.server.page.browsing import Tab
from vectors.formats import decode

CHAT = "/v1/chat/completions"
MUSIC = "Do you like music?"
GATE = {"probe": "honest", "above": -0.2, "latch": "rest"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model and its vectors."""
    model = load_model(MODEL_DIR, device="cpu", dtype="float32", model_id=MODEL_NAME)
    folder = tmp_path_factory.mktemp("data")
    with serving(folder, model=model, tokenizer=AutoTokenizer.from_pretrained(MODEL_DIR)) as running:
        for file in VECTORS_DIR.glob("*.safetensors"):
            running.store.put(file.stem, decode(file.read_bytes(), num_layers=6, hidden_size=192))
        yield running


@pytest.fixture(scope="module")
def server_url(server: Server) -> str:
    """Where the page is."""
    return server.url


def short(number: float) -> str:
    """A number as the page shows it."""
    return f"{number:.4g}".replace("-", "−")


def test_a_gate_and_probes_are_set_up_sent_and_shown(opened: Tab, server: Server) -> None:
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
    shown: list[Any] = spans.evaluate_all(
        "spans => spans.map((span) => (span.classList.contains('low') ? -1 : 1) * "
        "Number(span.style.getPropertyValue('--strength')))"
    )
    assert shown == pytest.approx(told["scores"][: len(shown)], abs=1e-4)  # the token that ends has no text
    spans.nth(2).click()
    scores = page.get_by_role("list", name="Scores").get_by_role("listitem")
    expected = [(name, each["layer"], each["scores"][2]) for name, each in choice["probes"].items()]
    expect(scores).to_have_text([f"{name} layer {layer}{short(score)}" for name, layer, score in expected])
    opened.check_access()
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    opened.page.reload()  # the link has all of it
    expect(plan).to_contain_text(f"on {count['open']} of {count['of']} tokens")
    expect(page.get_by_label("Colour tokens by")).to_have_value("honest.3")
    expect(gate.get_by_label("Threshold")).to_have_value("-0.2")


def test_eight_columns_are_one_request_and_one_is_refused_in_the_servers_words(opened: Tab) -> None:
    page = opened.page
    page.get_by_role("button", name="Fan").click()
    page.get_by_label("Scales, up to eight").fill("-0.9 -0.6 -0.3 0 0.3 0.6 0.9 1.2 1.5")
    opened.ask(MUSIC)
    expect(opened.answers).to_have_count(8)
    (body,) = opened.sent(CHAT)
    assert [each["steering"][0]["scale"] for each in body["variants"]] == [-0.9, -0.6, -0.3, 0, 0.3, 0.6, 0.9, 1.2]
    opened.ask("And winter?")  # each column goes on from its own answer
    histories = [each["messages"] for each in opened.asked(CHAT)[8:]]
    assert [messages[1]["content"] for messages in histories] == [
        page.locator(".turn").first.locator("tiller-answer").nth(number).locator(".tokens").inner_text()
        for number in range(8)
    ]
    assert len(opened.sent(CHAT)) == 2
