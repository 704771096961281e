"""Playing, keeping and watching, as a user does them with the embedded model in a real browser."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from server.demo import MODEL_NAME
from tests.server.api.serving import Server
from tests.server.page.browsing import Tab, tab

MUSIC = "Do you like music?"
VIEWS = {"play": "tiller-play", "keep": "tiller-keep", "train": "tiller-train", "watch": "tiller-watch"}


def answer_to(server: Server, **more: Any) -> dict[str, Any]:
    """A greedy answer to the question about music, from the API."""
    body = {"messages": [{"role": "user", "content": MUSIC}], "temperature": 0, "max_tokens": 200, **more}
    answer: dict[str, Any] = server.http.post("/v1/chat/completions", json=body).json()
    return answer


def body_in(program: str) -> Any:
    """The JSON that a Node program sends."""
    return json.JSONDecoder().raw_decode(program.partition("create(")[2])[0]


def printed_by(program: str) -> str:
    """What a Python program prints, in this process, which has the SDK."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(program, "program", "exec"), {})
    return printed.getvalue()


def test_a_stranger_shares_a_comparison_in_a_few_clicks(browser: Browser, opened: Tab, pictures: Path) -> None:
    page = opened.page
    page.evaluate(
        "window.numClicks = 0; document.addEventListener('click', (e) => (window.numClicks += e.isTrusted), true)"
    )
    page.get_by_role("button", name=MUSIC).click()
    opened.wait_for_answers()
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("window.numClicks") <= 5
    said = [opened.text_of(0), opened.text_of(1)]
    assert said[0] != said[1]
    opened.picture(pictures / "compare.png")
    with tab(browser, opened.url) as other:
        other.page.goto(page.url)
        expect(other.answers).to_have_count(2)
        assert [other.text_of(0), other.text_of(1)] == said
        expect(other.page.get_by_role("spinbutton", name="Scale of cheerful")).to_have_value("0.6")
        assert other.sent("/chat/completions") == []  # what is shown is what was shared; it is asked again on demand
        other.page.get_by_role("button", name="Run again").click()
        other.wait_for_answers()
        assert [other.text_of(0), other.text_of(1)] == said


def test_both_columns_stream_at_once_from_one_seed_and_show_what_the_server_says(opened: Tab, server: Server) -> None:
    opened.ask(MUSIC)
    plain, steered = opened.asked("/v1/chat/completions")
    assert steered.pop("steering") == [{"vector": "cheerful", "scale": 0.6}]
    assert plain == steered
    assert isinstance(plain["seed"], int)
    (together,) = opened.sent("/v1/chat/completions")
    assert len(together["variants"]) == 2
    expected = [answer_to(server), answer_to(server, steering=[{"vector": "cheerful", "scale": 0.6}])]
    texts = [each["choices"][0]["message"]["content"] for each in expected]
    assert [opened.text_of(0), opened.text_of(1)] == texts
    (applied,) = expected[1]["steering"]
    plan = opened.answers.nth(1).locator(".plan")
    expect(plan).to_have_text(f"cheerful × 0.6 · layers 4 · residual · add · response · {applied['revision'][:8]}")
    expect(opened.answers.nth(0).locator(".plan")).to_have_text("unsteered")
    tokens = answer_to(server, steering=[{"vector": "cheerful"}], logprobs=True)["choices"][0]["logprobs"]["content"]
    common = next(at for at, letters in enumerate(zip(*texts, strict=False)) if letters[0] != letters[1])
    lengths = [len("".join(each["token"] for each in tokens[: number + 1])) for number in range(len(tokens))]
    first_other = next(number for number, length in enumerate(lengths) if length > common)
    spans = opened.answers.nth(1).locator(".token")
    marked = spans.evaluate_all("spans => spans.map((span) => span.classList.contains('differs'))")
    assert marked == [number >= first_other for number in range(len(marked))]


def test_a_token_shows_what_else_was_likely(opened: Tab, server: Server, pictures: Path) -> None:
    opened.ask(MUSIC)
    steering = [{"vector": "cheerful", "scale": 0.6}]
    entry = answer_to(server, steering=steering, logprobs=True, top_logprobs=8)["choices"][0]["logprobs"]["content"][2]
    body = opened.answers.nth(1).get_by_role("group")
    body.focus()
    for _ in range(3):
        body.press("ArrowRight")
    drawer = opened.page.get_by_role("region", name="Token")
    expect(drawer).to_contain_text(f"log-probability {entry['logprob']:.3f}")
    names = drawer.locator(".alternatives code").all_inner_texts()
    assert sorted(map(str.strip, names)) == sorted(each["token"].strip() for each in entry["top_logprobs"])
    opened.page.get_by_text("Probes and colours").click()
    opened.page.get_by_label("Colour tokens by").select_option("logprob")
    strengths = "spans => spans.map((span) => Number(span.style.getPropertyValue('--strength')))"
    tokens = answer_to(server, steering=steering, logprobs=True)["choices"][0]["logprobs"]["content"]
    shown = opened.answers.nth(1).locator(".token").evaluate_all(strengths)
    assert shown == pytest.approx([min(1, -each["logprob"] / 5) for each in tokens[: len(shown)]], abs=1e-3)
    opened.picture(pictures / "token.png")


def test_the_programs_ask_for_exactly_what_the_page_asked(opened: Tab) -> None:
    page = opened.page
    page.get_by_label("System prompt").fill('It\'s "quiet" \\ here\n${HOME}')
    opened.ask(MUSIC)
    sent = opened.asked("/v1/chat/completions")[1]
    (together,) = opened.sent("/v1/chat/completions")
    opened.answers.nth(1).get_by_role("button", name="This request as code").click()
    code = page.locator("dialog pre")

    def program(language: str) -> str:
        page.get_by_label("As", exact=True).select_option(label=language)
        return code.inner_text()

    assert body_in(program("Node")) == sent
    assert program("Model name") == f"{MODEL_NAME}+cheerful:0.6"
    done = subprocess.run(["bash", "-euc", program("curl")], capture_output=True, encoding="utf-8", check=True)
    chunks = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
    pieces = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == opened.text_of(1)
    assert printed_by(program("Python")) == opened.text_of(1) + "\n"
    page.get_by_label("Column").select_option(label="All columns, as they were asked")
    assert body_in(program("Node")) == together
    assert printed_by(program("Python")) == f"0 {opened.text_of(0)}\n1 {opened.text_of(1)}\n"


def test_a_fan_of_scales_and_two_racks(opened: Tab, pictures: Path) -> None:
    page = opened.page
    page.get_by_role("button", name="Fan").click()
    page.get_by_label("Scales, up to eight").fill("-0.6, 0, 0.6")
    opened.ask(MUSIC)
    sent = opened.asked("/v1/chat/completions")
    assert [body["steering"] for body in sent] == [[{"vector": "cheerful", "scale": scale}] for scale in (-0.6, 0, 0.6)]
    assert len({body["seed"] for body in sent}) == 1
    expect(opened.answers).to_have_count(3)
    opened.picture(pictures / "fan.png")
    page.get_by_role("button", name="A / B").click()
    expect(page.get_by_role("heading", name="Vectors of B")).to_be_visible()
    page.get_by_role("button", name="Run again").click()
    opened.wait_for_answers()
    racks = opened.asked("/v1/chat/completions")[3:]
    assert [body["steering"][0]["vector"] for body in racks] == ["cheerful", "honest"]


def test_messages_are_edited_and_answered_again_and_the_chat_goes_on(opened: Tab) -> None:
    page = opened.page
    opened.ask(MUSIC)
    opened.ask("And winter?")
    histories = [body["messages"] for body in opened.asked("/v1/chat/completions")[2:]]
    assert [len(messages) for messages in histories] == [3, 3]
    assert histories[0][1]["content"] != histories[1][1]["content"]  # each column goes on from its own answer
    page.get_by_role("button", name="Edit message 1").click()
    page.get_by_role("textbox", name="Edit message 1").fill("Hello!")
    page.get_by_role("button", name="Run", exact=True).click()
    opened.wait_for_answers()
    assert [body["messages"][0]["content"] for body in opened.asked("/v1/chat/completions")[4:]] == ["Hello!", "Hello!"]
    page.get_by_role("spinbutton", name="Scale of cheerful").fill("-0.6")
    opened.answers.nth(1).get_by_role("button", name="Answer again").click()
    opened.wait_for_answers()
    assert len(opened.asked("/v1/chat/completions")) == 7


def test_an_edited_message_keeps_its_earlier_version_and_what_followed(browser: Browser, opened: Tab) -> None:
    page = opened.page
    opened.ask(MUSIC)
    first = [opened.text_of(0), opened.text_of(1)]
    opened.ask("And winter?")
    second = [opened.text_of(0), opened.text_of(1)]
    versions = page.get_by_role("group", name="Versions of message 1")
    expect(versions).to_have_count(0)
    page.get_by_role("button", name="Edit message 1").click()
    page.get_by_role("textbox", name="Edit message 1").fill("Hello!")
    page.get_by_role("button", name="Run", exact=True).click()
    opened.wait_for_answers()
    expect(page.locator(".turn")).to_have_count(1)
    expect(versions).to_contain_text("2 of 2")
    opened.check_access()
    num_sent = len(opened.asked("/chat/completions"))
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    with tab(browser, opened.url) as other:  # the link has the whole tree
        other.page.goto(page.url)
        expect(other.page.locator(".said p")).to_have_text("Hello!")
        before = other.page.get_by_role("button", name="Message 1: the version before")
        before.press("Enter")
        expect(before).to_be_focused()
        expect(other.page.locator(".said p")).to_have_text([MUSIC, "And winter?"])
        assert [other.text_of(0), other.text_of(1)] == second
        assert other.sent("/chat/completions") == []
    page.get_by_role("button", name="Message 1: the next version").click()  # after the last comes the first
    expect(versions).to_contain_text("1 of 2")
    page.get_by_role("button", name="Edit message 2").click()
    page.get_by_role("textbox", name="Edit message 2").fill("And summer?")
    page.get_by_role("button", name="Run", exact=True).click()
    opened.wait_for_answers()
    for place, body in enumerate(opened.asked("/chat/completions")[num_sent:]):
        assert [message["content"] for message in body["messages"]] == [MUSIC, first[place], "And summer?"]


def test_a_map_of_layers_and_scales_leads_back_to_a_chat(opened: Tab, pictures: Path) -> None:
    page = opened.page
    page.get_by_role("button", name="Layer × scale").click()
    page.get_by_label("Layers", exact=True).last.fill("3-4")
    page.get_by_label("Scales", exact=True).fill("-0.6, 0.6")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".stage .stop")).to_be_hidden()
    sent = [body["steering"][0] for body in opened.asked("/v1/chat/completions")]
    cells = [(entry["layers"], entry["scale"]) for entry in sent]
    assert sorted(cells) == [([3], -0.6), ([3], 0.6), ([4], -0.6), ([4], 0.6)]
    opened.picture(pictures / "map.png")
    page.get_by_role("button", name="Layer 4, scale 0.6").or_(page.locator("td .cell").last).last.click()
    opened.wait_for_answers()
    assert opened.asked("/v1/chat/completions")[-1]["steering"] == [{"vector": "cheerful", "scale": 0.6, "layers": "4"}]


def test_the_live_view_shows_what_the_metrics_say(opened: Tab, server: Server, pictures: Path) -> None:
    opened.ask(MUSIC)
    opened.page.get_by_role("link", name="Watch").click()
    lines = server.http.get("/metrics").text
    match = re.search(r'tiller:steered_tokens_total\{vector="cheerful"\} (\d+)', lines)
    assert match is not None
    expect(opened.page.locator(".bars")).to_contain_text(f"{int(match[1]):,}")
    expect(opened.page.locator("tiller-strip")).to_contain_text("0 running")
    opened.picture(pictures / "watch.png")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_everyone_can_use_every_view(browser: Browser, server: Server, scheme: Any, width: int, pictures: Path) -> None:
    first = server.store.get("cheerful").revision
    server.store.change("cheerful", {"description": "a second revision"})
    with tab(browser, server.url, scheme=scheme, width=width, height=760) as opened:
        page = opened.page

        def check(what: str) -> None:
            opened.check_access()
            widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert widths[0] <= widths[1], what

        opened.ask(MUSIC)
        check("play")
        opened.picture(pictures / f"{width}-{scheme}.png")
        page.get_by_text("Layers, positions, operation, gate").click()
        page.get_by_label("Only where a probe says so").select_option("honest")
        page.get_by_text("Probes and colours").click()
        page.get_by_label("Vector to read").select_option("honest")
        page.get_by_role("button", name="Read", exact=True).click()
        page.get_by_label("Colour tokens by").select_option("honest")
        page.get_by_role("button", name="Run again").click()
        opened.wait_for_answers()
        opened.answers.nth(1).locator(".token").first.click()
        expect(page.get_by_role("list", name="Scores")).to_be_visible()
        check("gates, probes, colours, a token")
        for mode in ("Fan", "A / B", "Layer × scale"):
            page.get_by_role("button", name=mode).click()
            check(mode)
        for view, element in VIEWS.items():
            opened.open(f"#{view}:cheerful" if view == "keep" else f"#{view}")
            expect(page.locator(element)).to_be_visible()
            if view == "keep":
                page.get_by_role("button", name=f"Compare {first[:8]}").click()
                expect(page.locator(".plot")).to_have_count(2)
            check(view)
        page.get_by_role("button", name="Keys").click()
        check("keys")


def test_the_chat_is_used_by_keyboard_alone(opened: Tab) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "message":
            break
    page.keyboard.type(MUSIC)
    page.keyboard.press("Enter")
    opened.wait_for_answers()
    expect(opened.answers).to_have_count(2)
    expect(page.locator(".stage > [role=status]")).to_have_text("2 answers done")
