"""The sweep itself, on two families: it calls a served model exact, and one that is not the same wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.model import prepare_model
from tests.families.checks import check_model
from tests.families.children import Outcome, judge_each
from tests.families.configurations import NAMES
from tests.families.ends import answer
from tests.families.family import judge
from tests.families.joins import describe_sites
from tests.families.models import make_model
from tests.families.results import (
    RECORDED,
    failures,
    news,
    outcomes_markdown,
    refusals_markdown,
    sites_markdown,
    unbuilt_markdown,
)
from tests.families.verdict import Verdict, read_verdicts, write_verdicts
from vectors.sites import find_sites

LLAMA = {
    "residual": "",
    "attention": "`self_attn`: added",
    "mlp": "`mlp`: added",
    "post_attention_norm": "`post_attention_layernorm`: of the stream, read by mlp",
}


def test_a_family_is_judged_from_its_folder() -> None:
    assert judge("llama") == Verdict("exact", sites=LLAMA)


@pytest.mark.parametrize("family", ["bloom", "xlm"])
def test_a_family_that_cannot_be_run_is_refused_with_a_message(family: str) -> None:
    """XLM raises in a pass without the arguments of its own, before its attention is looked at."""
    refused = judge(family)
    assert (refused.kind, refused.sites) == ("refused", {})
    assert "attention function" in refused.why


def test_a_model_that_is_not_the_same_is_wrong() -> None:
    loaded = prepare_model(make_model("llama", seed=1))
    problems = " ".join(check_model(make_model("llama"), loaded).problems)
    for what in (
        "default",
        "chunked",
        "preempted",
        "second turn",
        "known",
        "captured",
        "branches",
        "steered generation",
    ):
        assert what in problems, what


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "gemma2",
            {
                "attention": "`self_attn`: normed, then added",
                "mlp": "`mlp`: normed, then added",
                "post_attention_norm": "`post_attention_layernorm`: of the attention's output, added",
            },
        ),
        (
            "gpt_neox",
            {
                "attention": "`attention`: added",
                "mlp": "`mlp`: added, beside the attention",
                "post_attention_norm": "`post_attention_layernorm`: of the block's input, read by mlp",
            },
        ),
        (
            "granitemoeshared",
            {
                "attention": "`self_attn`: added × `residual_multiplier`",
                "mlp": "`block_sparse_moe`: added × `residual_multiplier`",
                "post_attention_norm": "`post_attention_layernorm`: of the stream, read by mlp",
                "block": "also `shared_mlp`",
            },
        ),
        (
            "lfm2",
            {
                "attention": "`conv`: added / `self_attn`: added",
                "mlp": "`feed_forward`: added",
                "post_attention_norm": "`ffn_norm`: of the stream, read by mlp",
            },
        ),
    ],
)
def test_how_a_site_joins_the_stream_is_measured(family: str, expected: dict[str, str]) -> None:
    model = make_model(family)
    assert describe_sites(model, find_sites(model)) == expected


def test_what_is_worse_than_recorded_fails() -> None:
    recorded = {"a": Verdict("exact", sites=LLAMA), "b": Verdict("refused", "no")}
    assert failures(recorded, recorded) == news(recorded, recorded) == []
    assert failures({"a": Verdict("refused", "no")}, recorded) == ["a: expected exact, got refused: no"]
    (said,) = failures({"a": Verdict("exact", sites=LLAMA | {"mlp": "`mlp`: normed"})}, recorded)
    assert said.startswith("a: expected the sites")
    assert failures({"b": Verdict("wrong", "x"), "c": Verdict("traceback", "y")}, recorded) == [
        "b: wrong: x",
        "c: traceback: y",
    ]
    better = {"b": Verdict("exact", sites=LLAMA), "c": Verdict("refused", "why")}
    assert failures(better, recorded) == []
    assert news(better, recorded) == ["b: exact", "c: refused: why"]


def test_the_recorded_list_is_of_families_that_there_are(tmp_path: Path) -> None:
    recorded = read_verdicts(RECORDED)
    assert recorded.keys() <= set(NAMES)
    write_verdicts(tmp_path / "again.json", recorded)
    assert (tmp_path / "again.json").read_text() == RECORDED.read_text()


def test_the_tables_name_every_family_once() -> None:
    recorded = read_verdicts(RECORDED)
    tables = {"exact": sites_markdown(), "refused": refusals_markdown(), "unbuilt": unbuilt_markdown()}
    for kind, table in tables.items():
        rows = [row for row in table.splitlines()[2:] if row.startswith("|")]
        named = [name.strip("` ") for row in rows for name in row.split("|")[1].split(",")]
        assert sorted(named) == sorted(name for name, verdict in recorded.items() if verdict.kind == kind)
    outcomes = [Outcome(name, verdict, 1.0) for name, verdict in recorded.items()]
    assert outcomes_markdown(outcomes).count("\n") == len(recorded) + 2


def test_a_child_that_hangs_or_dies_costs_one_answer() -> None:
    names = ["exits", "raises", "fills the memory", "answers"]
    outcomes = {
        outcome.name: outcome.verdict
        for outcome in judge_each(names, answer, limit=120, preload=["tests.families.ends"])
    }
    assert outcomes == {
        "exits": Verdict("traceback", "the process ended with status 3"),
        "raises": Verdict("traceback", "ValueError: no"),
        "fills the memory": Verdict("unbuilt", "the tiny model needs more than 6 GiB"),
        "answers": Verdict("exact"),
    }
    (outcome,) = judge_each(["hangs"], answer, limit=2)
    assert outcome.verdict == Verdict("traceback", "no verdict within 2 s")
