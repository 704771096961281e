"""The registry as a user looks after it, with the embedded model's vectors in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Browser, expect

from tests.server.api.serving import Server, direction, serving, vector
from tests.server.page.browsing import tab
from vectors.positions import Window
from vectors.vector import SteeringVector


def test_a_vector_is_uploaded_changed_compared_rolled_back_and_deleted(
    browser: Browser, server: Server, tmp_path: Path, pictures: Path
) -> None:
    file = tmp_path / "my vector.safetensors"
    file.write_bytes(server.http.get("/v1/steering/vectors/honest/content").content)
    with tab(browser, server.url, may_be_refused=True) as opened:
        page = opened.page
        opened.open("#keep")
        chooser = page.locator(".drop input")
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(b"no vector")
        chooser.set_input_files(broken)
        page.get_by_role("button", name="Upload").click()
        said = server.http.put("/v1/steering/vectors/broken", content=b"no vector").json()["error"]["message"]
        expect(page.get_by_role("alert")).to_contain_text(said)
        page.get_by_role("button", name="Cancel").click()
        chooser.set_input_files(file)
        expect(page.get_by_label("Name")).to_have_value("my-vector")
        page.get_by_role("button", name="Upload").click()
        expect(page.get_by_role("heading", name="my-vector")).to_be_visible()
        first = server.store.get("my-vector")
        norms = page.get_by_role("img", name="Norm by layer").locator("rect title")
        assert norms.all_text_contents() == [f"layer {layer}: {norm:.4g}" for layer, norm in first.vector.norms.items()]
        panel = page.locator(".panel", has=page.get_by_role("heading", name="Defaults"))
        panel.get_by_label("Scale").fill("1.25")
        panel.get_by_label("Description").fill("for a test")
        panel.get_by_role("button", name="Save as a new revision").click()
        expect(page.get_by_role("status")).to_contain_text("Saved as revision")
        changed = server.store.get("my-vector")
        assert (changed.vector.default_scale, changed.vector.description) == (1.25, "for a test")
        page.get_by_role("button", name=f"Compare {first.revision[:8]}").click()
        row = page.locator(".figures-table tbody tr").first.locator("td")
        expect(row.first).to_have_text("1")  # only the defaults differ
        opened.picture(pictures / "keep.png")
        page.get_by_role("button", name=f"Roll back to {first.revision[:8]}").click()
        expect(page.get_by_role("status")).to_contain_text(first.revision[:8])
        assert server.store.get("my-vector").revision == first.revision
        with page.expect_download() as download:
            page.get_by_role("button", name="Download", exact=True).click()
        assert Path(download.value.path()).read_bytes() == file.read_bytes()
        page.get_by_role("button", name="Delete").click()
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_role("button", name="Delete")).to_be_disabled()
        dialog.get_by_label("Name").fill("my-vector")
        dialog.get_by_role("button", name="Delete").click()
        expect(page.get_by_role("navigation", name="Vectors").get_by_role("link")).to_have_count(2)
        assert server.http.get("/v1/steering/vectors/my-vector").status_code == 404


def test_two_revisions_are_compared_in_figures_and_as_a_plot(browser: Browser, server: Server, pictures: Path) -> None:
    def figure(value: Any) -> str:
        return f"{float(value):.4g}".replace("-", "−")

    one, two, three = (torch.randn(192, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    mixed = one + 0.5 * two
    first, _ = server.store.put("pair", SteeringVector({2: one, 3: two}))
    second, _ = server.store.put("pair", SteeringVector({2: mixed, 4: three}))
    server.store.put("pair", SteeringVector({3: 2 * two}))
    expected = {
        second.revision: [
            ["2", figure(torch.cosine_similarity(one, mixed, 0)), figure(one.norm()), figure(mixed.norm())],
            ["3", "–", figure(two.norm()), "–"],
            ["4", "–", "–", figure(three.norm())],
        ],
        server.store.get("pair").revision: [
            ["2", "–", figure(one.norm()), "–"],
            ["3", "1", figure(two.norm()), figure(2 * two.norm())],
        ],
    }  # fmt: skip
    with tab(browser, server.url, scheme="dark", width=360, height=760) as opened:
        page = opened.page
        opened.open("#keep:pair")
        page.get_by_role("button", name=f"Compare {first.revision[:8]}").click()
        for base, rows in reversed(expected.items()):
            page.get_by_label("With", exact=True).select_option(base)
            expect(page.locator("caption")).to_have_text(f"{first.revision[:8]} and {base[:8]}")
            cells = page.locator(".figures-table tbody tr").evaluate_all(
                "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
            )
            assert cells == rows
            titles = (
                page.locator("section", has=page.get_by_role("heading", name="History"))
                .locator("rect title")
                .all_text_contents()
            )
            then = [f"then, layer {layer}: {norm}" for layer, _, norm, _ in rows if norm != "–"]
            now = [f"layer {layer}: {norm}" for layer, _, _, norm in rows if norm != "–"]
            assert sorted(titles) == sorted([*then, *now])
        opened.check_access()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        opened.picture(pictures / "compared.png")


def test_a_damaged_vector_is_shown_as_such_and_can_be_deleted(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path) as running, tab(browser, running.url, may_be_refused=True) as opened:
        running.store.put("calm", vector(1))
        lost = running.store.put("lost", vector(2))[0].revision
        (tmp_path / "vectors" / "objects" / f"{lost}.safetensors").write_bytes(b"lost")
        page = opened.page
        opened.open()
        expect(page.get_by_label("Vector to add").locator("option")).to_have_text(
            ["calm"]
        )  # play offers what can be used
        opened.open("#keep")
        names = page.get_by_role("navigation", name="Vectors").get_by_role("link")
        expect(names).to_have_count(2)
        (_, damaged) = running.http.get("/v1/steering/vectors").json()["data"]
        expect(names.nth(1)).to_contain_text(damaged["error"])
        names.nth(1).click()
        expect(page.get_by_role("alert")).to_contain_text(damaged["error"])
        page.get_by_role("button", name="Delete").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Name").fill("lost")
        dialog.get_by_role("button", name="Delete").click()
        expect(names).to_have_count(1)
        assert running.http.get("/v1/steering/vectors/lost").status_code == 404


def test_a_window_of_positions_is_shown_kept_and_replaced(browser: Browser, tmp_path: Path) -> None:
    window = Window("prompt", -4)
    with serving(tmp_path) as running, tab(browser, running.url) as opened:
        running.store.put("calm", SteeringVector({1: direction(1)}, positions=window))
        page = opened.page
        opened.open("#keep:calm")
        panel = page.locator(".panel", has=page.get_by_role("heading", name="Defaults"))
        expect(panel.get_by_label("Positions")).to_have_value('{"of":"prompt","last":4}')
        panel.get_by_label("Positions").select_option("all")
        panel.get_by_label("Positions").select_option('{"of":"prompt","last":4}')
        panel.get_by_label("Description").fill("steers the end of the prompt")
        panel.get_by_role("button", name="Save as a new revision").click()
        expect(page.get_by_role("status")).to_contain_text("Saved as revision")
        changed = running.store.get("calm").vector
        assert (changed.positions, changed.description) == (window, "steers the end of the prompt")
        panel.get_by_label("Positions").select_option("all")
        panel.get_by_role("button", name="Save as a new revision").click()
        expect(panel.get_by_label("Positions").locator("option")).to_have_count(3)
        assert running.store.get("calm").vector.positions == "all"
