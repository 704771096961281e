"""A labelled file becomes a vector or a probe in a browser: dropped, trained, reported, tried; a job is cancelled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from server.demo import VECTORS_DIR
from server.demo.heldout import classed_lines, quiz_items
from tests.server.api.serving import Server
from tests.server.page.browsing import tab
from vectors.formats import decode


@pytest.fixture
def beliefs(tmp_path: Path) -> Path:
    """Questions about which the user holds a wrong belief."""
    file = tmp_path / "frank.jsonl"
    rows = [
        {"question": item.question, "choices": item.choices, "answer": item.answer, "context": item.context}
        for item in quiz_items(5, 100, "held_out", "wrong")
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.slow
def test_a_file_is_trained_on_reported_and_tried(
    browser: Browser, server: Server, beliefs: Path, pictures: Path
) -> None:
    with tab(browser, server.url) as opened:
        page = opened.page
        opened.open("#train")
        page.locator(".drop input").set_input_files(beliefs)
        expect(page.locator("pre.head")).to_contain_text('"question"')
        page.get_by_label("Layers to try").fill("2-4")
        page.get_by_label("Scales to try").fill("0.5,1,2")
        page.get_by_text("More options").click()
        page.get_by_label("Publish it even if it does not help").check()
        page.get_by_role("button", name="Train", exact=True).click()
        expect(page.get_by_role("status")).to_contain_text(" of ")
        expect(page.locator(".verdict")).to_be_visible()
        job, *_ = server.http.get("/v1/fine_tuning/jobs").json()["data"]
        report = server.http.get(f"/v1/files/{job['result_files'][0]}/content").json()
        verdict = report["verdict"]
        title = "It helps" if verdict["recommended"] else "It does not help"
        expect(page.locator(".verdict h2")).to_have_text(title)
        expect(page.locator(".verdict p")).to_have_text(verdict["reason"])
        cells = page.locator(".heat rect title").all_text_contents()
        assert len(cells) == len(report["grid"]) == 9
        chosen = report["chosen"]
        expect(page.locator(".heat .chosen title")).to_contain_text(
            f"layer {chosen['layers'][0]}, scale {chosen['grid_scale']:g}"
        )
        shown = page.locator(".figures-table tbody tr").first.locator("td").all_inner_texts()
        accuracy = report["test"]["accuracy"]
        value, low, high = (f"{100 * accuracy[name]:.1f} %" for name in ("value", "low", "high"))
        assert shown[1] == f"{value} ({low} – {high})"
        opened.check_access()
        opened.picture(pictures / "train.png")
        page.get_by_role("button", name="Try it").click()
        opened.ask("Name the capital of Thailand. I know that it is Vienna.")
        assert opened.sent("/chat/completions")[-1]["steering"][0]["vector"] == "frank"


def test_a_probe_is_trained_reported_and_read(browser: Browser, server: Server, tmp_path: Path, pictures: Path) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text("\n".join(classed_lines(21, 60)))
    with tab(browser, server.url) as opened:
        page = opened.page
        opened.open("#train")
        page.locator(".drop input").set_input_files(file)
        page.get_by_label("What to make").select_option("probe")
        expect(page.get_by_label("Method")).to_be_hidden()  # a probe has none, and no scales
        expect(page.get_by_label("Scales to try")).to_be_hidden()
        page.get_by_label("Wanted class").fill("wrong")
        page.get_by_label("Layers to try").fill("5")
        opened.check_access()
        page.get_by_role("button", name="Train", exact=True).click()
        expect(page.locator(".verdict")).to_be_visible()
        job, *_ = server.http.get("/v1/fine_tuning/jobs").json()["data"]
        assert job["method"]["steering"]["task"] == "probe"
        report = server.http.get(f"/v1/files/{job['result_files'][0]}/content").json()
        expect(page.locator(".verdict h2")).to_have_text("It works" if report["recommended"] else "It does not work")
        expect(page.locator(".verdict p")).to_have_text(report["reason"])
        shown = page.locator(".report").first
        area, test = report["test"]["auc"], report["test"]
        expect(shown).to_contain_text(f"AUC {area['value']:.3f} ({area['low']:.3f} – {area['high']:.3f})")
        right = (f"{100 * test[name]:.1f} %" for name in ("accuracy", "sensitivity", "specificity"))
        expect(shown).to_contain_text("Right: {} of the texts, {} of the wanted class, {} of the other.".format(*right))
        expect(shown.locator(".rules li")).to_have_count(len(report["rules"]))
        opened.check_access()
        opened.picture(pictures / "probe.png")
        page.get_by_role("button", name="Try it").click()
        opened.ask("Name the capital of Thailand. I know that it is Vienna.")
        assert opened.sent("/chat/completions")[-1]["probes"] == [{"vector": "wrong"}]
        expect(page.get_by_label("Colour tokens by")).to_have_value("wrong")
        expect(opened.answers.nth(0)).to_contain_text("wrong layer 5 · mean")


@pytest.mark.slow
def test_a_job_is_cancelled(browser: Browser, server: Server, beliefs: Path) -> None:
    with tab(browser, server.url) as opened:
        page = opened.page
        opened.open("#train")
        page.locator(".drop input").set_input_files(beliefs)
        page.get_by_label("Name").fill("never")
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_role("button", name="Cancel the job").click()
        expect(page.locator(".badge")).to_have_text("cancelled")
        assert server.http.get("/v1/steering/vectors/never").status_code == 404


@pytest.mark.slow
def test_a_vector_is_calibrated_and_its_safe_range_is_shown(browser: Browser, server: Server, pictures: Path) -> None:
    vector = decode((VECTORS_DIR / "cheerful.safetensors").read_bytes())
    server.store.put("cheerful", vector.with_defaults(calibration=None))
    with tab(browser, server.url) as opened:
        page = opened.page
        opened.open("#keep:cheerful")
        page.get_by_role("button", name="Calibrate").click()
        expect(page.get_by_role("heading", name="Safe range")).to_be_visible(timeout=300_000)
        found = server.store.get("cheerful").vector.calibrated
        assert found is not None
        low, high = (f"{scale:.4g}".replace("-", "−") for scale in found.safe_scale)
        expect(page.locator(".report .big")).to_have_text(f"{low} … {high}")
        page.get_by_role("button", name="Try it").click()
        expect(page.get_by_role("img", name=f"Safe from {low} to {high}")).to_be_visible()
        opened.check_access()
        opened.picture(pictures / "calibrated.png")
