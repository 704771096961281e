"""A labelled file becomes a vector in a browser: dropped, trained, reported, tried; and a job is cancelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from transformers import AutoTokenizer

from server.demo import MODEL_DIR, MODEL_NAME, VECTORS_DIR
from server.demo.heldout import quiz_items
from server.engine.model import load_model
from server.training.steering_trainer import SteeringTrainer
from tests.server.api.serving import Server, serving
from tests.server.page.browsing import tab
from vectors.formats import decode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model, and training on it."""
    model = load_model(MODEL_DIR, device="cpu", dtype="float32", model_id=MODEL_NAME)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    folder = tmp_path_factory.mktemp("data")
    with serving(folder, model=model, tokenizer=tokenizer, trainer=SteeringTrainer) as running:
        yield running


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
        (job,) = server.http.get("/v1/fine_tuning/jobs").json()["data"]
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
