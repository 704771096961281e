"""How long the first text of eight columns takes beside that of one, in a real browser with the embedded model.

`python -m tests.server.page.columns` prints the time from the click to the first text in every column, over the rounds,
and the ratio of eight columns to one in the same round. It means something on an idle machine only.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.server.cli.running import ServerProcess
from tests.server.page.browsing import chromium, tab

NUM_ROUNDS = 15
SCALES = {1: "0.6", 8: "-0.6 -0.4 -0.2 0 0.2 0.4 0.6 0.7"}
MEASURE = """() => new Promise((resolve) => {
  const seen = new Map();
  const began = performance.now();
  const look = () => {
    const cards = [...document.querySelectorAll('.turn tiller-answer')];
    const now = performance.now() - began;
    for (const card of cards) if (!seen.has(card) && card.querySelector('.token')) seen.set(card, now);
    if (cards.length && seen.size === cards.length) {
      observer.disconnect();
      resolve(Math.max(...seen.values()));
    }
  };
  const observer = new MutationObserver(look);
  observer.observe(document.body, { childList: true, subtree: true });
  document.querySelector('.composer .primary').click();
})"""


def milliseconds(page: Page, num_columns: int, number: int) -> float:
    """From the click to the first text in the slowest of so many columns, for a new chat about `number`."""
    page.get_by_role("button", name="New chat").click()
    page.get_by_label("Scales, up to eight").fill(SCALES[num_columns])
    page.get_by_role("textbox", name="Message", exact=True).fill(f"Do you like the number {number}?")
    found = float(page.evaluate(MEASURE))
    page.locator(".composer .stop").wait_for(state="hidden")
    return found


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median, both quartiles and the least, to which other programs added least."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.3g}{unit} (quartiles {low:.3g} and {high:.3g}, least {min(values):.3g})"


def main() -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder)) as process,
        sync_playwright() as playwright,
    ):
        url = process.wait_until_ready()
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--disable-gpu", "--no-sandbox"])
        with tab(browser, url) as opened:
            opened.page.get_by_role("button", name="Fan").click()
            times: dict[int, list[float]] = {number: [] for number in SCALES}
            for number in range(NUM_ROUNDS + 1):
                for columns in times if number % 2 else reversed(times):
                    times[columns].append(milliseconds(opened.page, columns, 2 * number + (columns > 1)))
        browser.close()
    one, eight = (known[1:] for known in times.values())  # the first round warms up
    print(f"{NUM_ROUNDS} rounds; first text in every column after")
    print(f"1 column   {spread(one, ' ms')}")
    print(f"8 columns  {spread(eight, ' ms')}")
    print(f"ratio      {spread([many / single for single, many in zip(one, eight, strict=True)])}")
    print(f"           {min(eight) / min(one):.3g} of the fastest rounds")


if __name__ == "__main__":
    main()
