"""Tables of the pages that are made from the source. `python -m tests.tables` writes them anew; a test keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.families.results import refusals_markdown, sites_markdown, unbuilt_markdown
from tests.faults.points import faults_markdown
from tests.shared_files import ROOT
from vectors.defaults import defaults_markdown
from vectors.formats import formats_markdown
from vectors.training.options import options_markdown

TABLES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "vectors/training/options.py": ("training.md", options_markdown),
    "vectors/formats/__init__.py": ("vectors.md", formats_markdown),
    "vectors/defaults.py": ("vectors.md", defaults_markdown),
    "tests/families/recorded.json (exact)": ("families.md", sites_markdown),
    "tests/families/recorded.json (refused)": ("families.md", refusals_markdown),
    "tests/families/recorded.json (unbuilt)": ("families.md", unbuilt_markdown),
    "tests/faults/recorded.json": ("durability.md", faults_markdown),
}
"""By the file that declares what a table shows: the page, and what makes the table."""


def with_table(page: str, source: str, table: str) -> str:
    """The text of a page with the table of `source` in its place, which must be there once."""
    begin = f"<!-- made from {source}: python -m tests.tables -->\n"
    before, rest = page.split(begin)
    _, end, after = rest.partition("<!-- end -->")
    return before + begin + table + end + after


if __name__ == "__main__":
    for source, (name, make) in TABLES.items():
        path = ROOT / "docs" / name
        path.write_text(with_table(path.read_text(encoding="utf-8"), source, make()), encoding="utf-8")
