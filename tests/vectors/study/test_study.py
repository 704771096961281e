"""Studies: what is refused, going on cell by cell, cells of other studies, and tables against a slow reference."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.vectors.training.hash_probe import HashProbe, TextProbe
from vectors.data import TASKS, ChoiceItem, DataSet
from vectors.errors import InvalidData, InvalidMethod
from vectors.study.data import StudyData, read_study_data
from vectors.study.definition import MAX_BYTES, ModelCase, Study, StudyCell
from vectors.study.effects import effect_rows, mean_rows
from vectors.study.run import StudyProgress, cell_file, read_cells, run_study
from vectors.study.tables import study_files
from vectors.training.method import Method
from vectors.training.model_view import Steering
from vectors.training.train import TrainingData, train

CASE = ModelCase("a/model")
STUDY = """
name: tiny
tasks: [sycophancy, truthfulqa, openbookqa]
variants: [pas_full, ipas_wrong_only]
sites: [residual, mlp]
seeds: 3
icl: [0, 2]
method: {layers: [0, 2], scales: [1, 4]}
retention: mmlu
"""


def items(name: str, count: int = 30) -> DataSet:
    chance = random.Random(name)
    made = tuple(
        ChoiceItem(f"{name} {number}?", ("red", "green", "blue"), chance.randrange(3), line=number)
        for number in range(count)
    )
    return DataSet(name, hashlib.sha256(name.encode()).hexdigest(), made)


def data_of(study: Study) -> StudyData:
    return StudyData({task.name: items(task.name) for task in study.tasks}, items("mmlu", 12))


def ignore(found: StudyProgress) -> None:
    pass


def results(records: Mapping[StudyCell, Mapping[str, Any]]) -> dict[StudyCell, dict[str, Any]]:
    return {cell: {name: value for name, value in found.items() if name not in COST} for cell, found in records.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the whole study has its files."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Study, dict[StudyCell, Any]]:
    """A whole study, in one go."""
    study = Study.from_yaml(STUDY)
    return study, run_study(study, CASE, HashProbe(), data_of(study), folder, ignore)


COST = ("seconds", "items_per_second", "searched_together")
"""What differs from run to run."""

MINIMAL = "name: x\ntasks: sycophancy\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a study's fields"),
        ("[1]", "expected a study's fields"),
        ("tasks: sycophancy", "name: required field is missing"),
        ("name: x", "tasks: required field is missing"),
        ("name: x\ntasks: []", "tasks: expected 1 to"),
        ("name: x\ntasks: [sycophancy, sycophancy]", "tasks: expected each value once, got sycophancy twice"),
        ("name: x\ntasks: [honesty]", r"tasks\[0\]: expected one of .*, mmlu/SUBJECT, got 'honesty'"),
        ("name: x\ntasks: [3]", r"tasks\[0\]: expected the name of a task"),
        ("name: x\ntasks: [{name: own}]", r"tasks\[0\].file: required field is missing"),
        ("name: x\ntasks: [{file: own.jsonl}]", r"tasks\[0\].name: required field is missing"),
        ("name: x\ntasks: [{name: own, file: [a]}]", r"tasks\[0\].file: expected a line of text"),
        ("name: x\ntasks: [{name: Own!, file: a}]", r"tasks\[0\].name: expected at most 80 lower-case letters"),
        ("name: x\ntasks: [{name: sycophancy, file: a}]", r"tasks\[0\].name: sycophancy is a built-in task"),
        ("name: x\ntasks: [{name: own, file: a, kind: b}]", r"tasks\[0\].kind: unknown field"),
        (MINIMAL + "models: [a, b]", "models: unknown field.*one study file per model"),
        (MINIMAL + "3: a", "3: unknown field"),
        (MINIMAL + "name: y", "name is given twice"),
        (MINIMAL + "model: 3", "model: expected a line of text"),
        (MINIMAL + "adapter: [null, null]", "adapter: expected each value once, got None twice"),
        (MINIMAL + "adapter: [3]", "adapter: expected a line of text"),
        (MINIMAL + "variants: [pas]", "variants: expected one or more of ipas_wrong_only"),
        (MINIMAL + "sites: head", "sites: expected one or more of residual"),
        (MINIMAL + "seeds: 0", r"seeds: expected a whole number from 1 to 100 \(how many\), or a list"),
        (MINIMAL + "seeds: true", "seeds: expected a whole number from 1 to 100"),
        (MINIMAL + "seeds: [1, 1]", "seeds: expected each value once, got 1 twice"),
        (MINIMAL + "seeds: [-1]", "seeds: expected a whole number from 0 to 2147483647, got -1"),
        (MINIMAL + f"seeds: [0x{'f' * 10_000}]", "seeds: .*digits"),
        (MINIMAL + "icl: [65]", "icl: expected a whole number from 0 to 64, got 65"),
        (MINIMAL + "icl: [0, 0]", "icl: expected each value once, got 0 twice"),
        (MINIMAL + "method: 3", "method: expected options"),
        (MINIMAL + "method: {1: 2}", "method: expected options of a method by name"),
        (MINIMAL + "method: {seeds: 3}", "method.seeds: use the study's own field seeds"),
        (MINIMAL + "method: {variant: all}", "method.variant: use the study's own field variants"),
        (MINIMAL + "method: {allow_no_gain: true}", "method.allow_no_gain: not an option of study, only of train"),
        (MINIMAL + "method: {layers: []}", "method.layers: expected at least one layer"),
        (MINIMAL + "method: {colour: red}", "method.colour: unknown option, expected one of layers"),
        (MINIMAL + "retention: [a]", "retention: expected a line of text"),
        ("name: &a x\ntasks: *a", "line 2: aliases"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("a: 2020-13-45", "not valid YAML"),
        ("[" * 100_000, "nested too deeply"),
        ("#" * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_wrong_studies_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InvalidMethod, match=message) as caught:
        Study.from_yaml(text)
    assert len(str(caught.value)) < 1000


def test_defaults_and_own_tasks(tmp_path: Path) -> None:
    rows = [{"question": f"{number}?", "choices": ["a", "b"], "answer": 0} for number in range(9)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = (
        "name: x\ntasks: [{name: own/a, file: own.jsonl, category: tone, attribute: Own}, demo]\nretention: own.jsonl"
    )
    study = Study.from_yaml(text, other_tasks={"demo": "bias"})
    own, demo = study.tasks
    assert (own.category, own.attribute, demo.category, demo.attribute) == ("tone", "Own", "bias", "demo")
    assert study.cases() == (ModelCase(),)
    assert [cell.seed for cell in study.cells()] == [0] * 6
    data = read_study_data(study, tmp_path, other_tasks={"demo": lambda: items("demo")})
    assert [len(found.items) for found in data.tasks.values()] == [9, 30]
    assert data.retention is not None
    assert len(data.retention.items) == 9
    with pytest.raises(InvalidData, match=r"own\.jsonl: cannot be read"):
        read_study_data(study, tmp_path / "elsewhere", other_tasks={"demo": lambda: items("demo")})


def test_data_folder(tmp_path: Path) -> None:
    rows = [{"question": f"{number}?", "mc1_targets": {"yes": 1, "no": 0}} for number in range(9)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mc_task.json").write_text(json.dumps(rows))
    study = Study.from_yaml("name: x\ntasks: truthfulqa\ndata_folder: data\nretention: truthfulqa")
    data = read_study_data(study, tmp_path)
    assert data.tasks["truthfulqa"] is data.retention
    with pytest.raises(InvalidData, match="not a folder"):
        read_study_data(study, tmp_path, data_folder=tmp_path / "none")


def test_cells_are_written_as_they_are_found(finished: tuple[Study, dict[StudyCell, Any]], tmp_path: Path) -> None:
    study, whole = finished
    assert list(whole) != []
    assert set(whole) == set(study.cells())
    assert len(whole) == 3 * 2 * 2 * 3 * 2
    one = Study.from_yaml(STUDY.replace("seeds: 3", "seeds: [1]").replace("icl: [0, 2]", "icl: 2"))
    told: list[StudyProgress] = []
    found = run_study(one, CASE, HashProbe(), data_of(one), tmp_path, told.append)
    assert results(found) == {
        cell: record for cell, record in results(whole).items() if (cell.icl, cell.seed) == (2, 1)
    }
    for cell, record in found.items():
        assert json.loads(cell_file(tmp_path, CASE, cell).read_bytes()) == record
    assert len(list(tmp_path.rglob("*.json"))) == len(found) == 12
    assert [progress.num_done for progress in told if progress.phase is None] == [
        *range(5),
        *range(4, 9),
        *range(8, 13),
    ]
    assert told[-1].seconds_left == 0.0


@pytest.mark.parametrize("num_cells", [1, 4, 7, 30])
def test_a_killed_study_goes_on(finished: tuple[Study, dict[StudyCell, Any]], tmp_path: Path, num_cells: int) -> None:
    study, whole = finished

    class Killed(Exception):
        pass

    def kill(found: StudyProgress) -> None:
        if found.num_done == num_cells:
            raise Killed

    with pytest.raises(Killed):
        run_study(study, CASE, HashProbe(), data_of(study), tmp_path, kill)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(before) == num_cells
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path not in before] == []
    view = HashProbe()
    assert results(run_study(study, CASE, view, data_of(study), tmp_path, ignore)) == results(whole)
    assert view.num_searched == 18 - num_cells // 4  # four cells share a search
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = HashProbe()
    run_study(study, CASE, again, data_of(study), tmp_path, ignore)
    assert again.num_searched == 0


def test_a_study_can_grow(finished: tuple[Study, dict[StudyCell, Any]], tmp_path: Path) -> None:
    study, whole = finished
    small = Study.from_yaml(STUDY.replace("[pas_full, ipas_wrong_only]", "pas_full").replace("seeds: 3", "seeds: 2"))
    run_study(small, CASE, HashProbe(), data_of(small), tmp_path, ignore)
    assert results(run_study(study, CASE, HashProbe(), data_of(study), tmp_path, ignore)) == results(whole)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("scales: [1, 4]", "scales: [1, 3]", "method differ"),
        ("retention: mmlu", "", "retention_sha256 differ"),
        ("layers: [0, 2], ", "", "method differ"),
    ],
)
def test_cells_of_another_study_are_refused(
    finished: tuple[Study, dict[StudyCell, Any]], tmp_path: Path, old: str, new: str, names: str
) -> None:
    study, _ = finished
    small = STUDY.replace("seeds: 3", "seeds: 1").replace("icl: [0, 2]", "icl: 0")
    study = Study.from_yaml(small)
    run_study(study, CASE, HashProbe(), data_of(study), tmp_path, ignore)
    other = Study.from_yaml(small.replace(old, new))
    data = data_of(other)
    view = HashProbe()
    with pytest.raises(InvalidMethod, match=names):
        run_study(other, CASE, view, data if other.retention else StudyData(data.tasks), tmp_path, ignore)
    changed = {name: items(name, 31) for name in data.tasks}
    changed = {name: DataSet(name, "0" * 64, found.items) for name, found in changed.items()}
    with pytest.raises(InvalidMethod, match="data_sha256 differ"):
        run_study(study, CASE, view, StudyData(changed, items("mmlu", 12)), tmp_path, ignore)
    assert view.num_searched == 0
    assert read_cells(study, ModelCase("another/model"), data_of(study), tmp_path) == {}
    assert read_cells(study, ModelCase("a/model", "adapter"), data_of(study), tmp_path) == {}
    assert read_cells(study, ModelCase("a/model", dtype="float32"), data_of(study), tmp_path) == {}


def test_cells_of_another_format_are_refused_in_words(tmp_path: Path) -> None:
    study = Study.from_yaml(MINIMAL + "variants: mean_difference\nmethod: {layers: [1], scales: [1]}")
    run_study(study, CASE, HashProbe(), data_of(study), tmp_path, ignore)
    path = cell_file(tmp_path, CASE, study.cells()[0])
    record = json.loads(path.read_bytes())
    record["depends_on"]["format"] = 3
    path.write_text(json.dumps(record | {"key": "0" * 64}))
    with pytest.raises(InvalidMethod, match="expected a cell of format 4, got 3, of another version; choose another"):
        run_study(study, CASE, HashProbe(), data_of(study), tmp_path, ignore)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "a", "depends_on": {}}', "{" * 10_000])
def test_damaged_cells_are_named(finished: tuple[Study, dict[StudyCell, Any]], tmp_path: Path, content: str) -> None:
    study, _ = finished
    path = cell_file(tmp_path, CASE, study.cells()[5])
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(InvalidData, match="is not a cell of a study") as caught:
        run_study(study, CASE, HashProbe(), data_of(study), tmp_path, ignore)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("letters", ["balanced", "paper"])
def test_cells_are_what_a_training_reports(tmp_path: Path, letters: str) -> None:
    options = {"layers": [1, 2], "scales": [1, 4], "letters": letters}
    text = STUDY.replace("{layers: [0, 2], scales: [1, 4]}", json.dumps(options)).replace("icl: [0, 2]", "icl: 0")
    study = Study.from_yaml(text)
    found = run_study(study, CASE, HashProbe(), data_of(study), tmp_path, ignore)
    data = TrainingData(items("truthfulqa"), retention_items=items("mmlu", 12))
    for site in ("residual", "mlp"):
        method = Method.from_json(options | {"site": site, "variant": "pas_full"})
        report = train(TextProbe(), data, method, seed=2, report=lambda step: None).report
        record = found[StudyCell("truthfulqa", "pas_full", site, 0, 2)]
        tested = report["test"]
        del tested["letters"]
        assert record["test"] == tested
        assert record["baseline"] == report["baseline"]["test"]
        assert record["validation_baseline"] == report["baseline"]["validation"]
        assert record["chosen"]["layer"] == report["chosen"]["layers"][0]
        assert record["chosen"]["scale"] == report["chosen"]["grid_scale"]
        assert record["chosen"]["dose"] == report["chosen"]["dose"]
        kept = report["retention"]["accuracy"]
        assert record["retention"]["baseline"] == kept["baseline"]["value"]
        assert record["retention"]["change"] == kept["change"]


def test_a_cell_without_a_result_is_written_with_its_reason(tmp_path: Path) -> None:
    study = Study.from_yaml(
        "name: x\ntasks: [sycophancy, truthfulqa]\nvariants: all\nicl: [0, 3]\nsites: [residual, mlp]"
    )
    data = StudyData({"sycophancy": items("sycophancy", 4), "truthfulqa": items("truthfulqa")})
    view = KnowingProbe()
    found = run_study(study, CASE, view, data, tmp_path, ignore)
    reasons = {cell: record["reason"] for cell, record in found.items()}
    for cell, reason in reasons.items():
        if cell.task == "sycophancy":
            assert "items to split, got 4" in reason
        elif cell.icl:
            assert "icl: expected lettered items" in reason
        elif cell.variant == "mean_difference":
            assert reason is None
        else:
            assert reason.startswith(f"{cell.variant} has nothing to contrast")
    assert view.num_searched == 1
    run_study(study, CASE, view, data, tmp_path, ignore)
    assert view.num_searched == 1
    files = study_files(study, {CASE: found})
    assert "Without a result" in files["study.md"].decode()
    rows = effect_rows(study, {CASE: found})
    assert {row["seeds"] for row in rows if row["task"] == "sycophancy"} == {0}
    assert {row["effect"] for row in rows if row["task"] == "sycophancy"} == {None}
    (row,) = [row for row in rows if row["seeds"]][:1]
    assert (row["low"], row["high"]) == tuple(found[cell_of(row)]["test"]["ci95"])
    assert row["t"] is row["p"] is row["presented_low"] is None


@pytest.mark.parametrize(
    ("text", "param"),
    [("sites: attention", "site"), ("method: {layers: [3]}", "layers"), ("method: {prompt: chat}", "prompt")],
)
def test_what_the_model_lacks_is_refused_at_once(tmp_path: Path, text: str, param: str) -> None:
    study = Study.from_yaml(MINIMAL + text)
    with pytest.raises(InvalidMethod) as caught:
        run_study(study, CASE, HashProbe(), data_of(study), tmp_path, ignore)
    assert caught.value.param == param
    assert list(tmp_path.iterdir()) == []


class KnowingProbe(HashProbe):
    """Answers every item of `items` right."""

    def next_token_logits(
        self,
        prompts: Sequence[tuple[int, ...]],
        token_ids: Sequence[tuple[int, ...]],
        steerings: Sequence[tuple[Steering, ...]],
    ) -> Iterator[tuple[int, Tensor]]:
        answers = {item.question: item for name in TASKS for item in self._known(name)}
        for index, prompt in enumerate(prompts):
            text = "".join(map(chr, prompt[1:]))
            question, *options = text.split("\n")
            letter = next(line[0] for line in options if line[3:] == answers[question].answer_text)
            scores = [0.0 if token % 200 == ord(letter) else -9.0 for token in token_ids[index]]
            yield index, torch.tensor([scores] * len(steerings))

    def _known(self, name: str) -> tuple[ChoiceItem, ...]:
        return items(name).items if name in ("sycophancy", "truthfulqa") else ()  # type: ignore[return-value]


def cell_of(row: Mapping[str, Any], seed: int = 0) -> StudyCell:
    return StudyCell(row["task"], row["variant"], row["site"], row["icl"], seed)


def close(found: Any, expected: Any) -> bool:
    if found is None or expected is None:
        return found is expected
    return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)


def slow_figures(baselines: list[float], gains: list[float], errors: list[float] | None = None) -> dict[str, Any]:
    """Student's test, from the definition; with the errors of the gains, corrected for splits of 18 and 6 items."""
    count = len(gains)
    mean = sum(gains) / count
    variance = sum((gain - mean) ** 2 for gain in gains) / (count - 1)
    figures = {"baseline": sum(baselines) / count, "effect": mean, "steered": sum(baselines) / count + mean}
    share = 1 / count
    if errors is not None:
        variance = max(variance, sum(error**2 for error in errors) / count)
        share += 6 / 18
    if variance < 1e-24:
        return figures | dict.fromkeys(("low", "high", "t", "p"))
    error = math.sqrt(share * variance)
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    p = float(stats.t.sf(mean / error, count - 1))
    return figures | {"low": mean - reach, "high": mean + reach, "t": mean / error, "p": p}


def slow_holm(p_values: list[float]) -> list[float]:
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def slow_exact(records: list[Any]) -> float:
    """The share of all signs of the items' changes, each in sixths, whose sum is at least theirs."""
    changes = [
        6 * (after - before) // asked
        for found in records
        for asked, before, after in zip(*(found["items"][name] for name in PARTS), strict=True)
    ]
    sums = {0: 1}
    for change in changes:
        counts: dict[int, int] = {}
        for total, count in sums.items():
            for signed in (change, -change):
                counts[total + signed] = counts.get(total + signed, 0) + count
        sums = counts
    reached = sum(count for total, count in sums.items() if total >= sum(changes))
    return reached / float(2 ** len(changes))


PARTS = ("prompts", "right_before", "right_after")


def test_tables_against_a_slow_reference(finished: tuple[Study, dict[StudyCell, Any]], folder: Path) -> None:
    study, _ = finished
    # from the files alone
    records = {cell: json.loads(cell_file(folder, CASE, cell).read_bytes()) for cell in study.cells()}
    assert all(record["reason"] is None for record in records.values())
    rows = effect_rows(study, {CASE: records})
    assert len(rows) == 3 * 2 * 2 * 2
    for row in rows:
        own = [records[cell_of(row, seed)] for seed in range(3)]
        assert all((found["split"]["train"] + row["icl"], found["split"]["test"]) == (18, 6) for found in own)
        balanced = slow_figures(
            [found["baseline"]["value"] for found in own],
            [found["test"]["gain"] for found in own],
            None if row["icl"] else [found["test"]["standard_error"] for found in own],
        )
        shown = slow_figures(
            [found["test"]["presented"]["baseline"] for found in own],
            [found["test"]["presented"]["gain"] for found in own],
        )
        for name in shown:
            # exemplars are not trained on, which changes the correction
            if not row["icl"] or name in ("baseline", "effect", "steered"):
                assert close(row[name], balanced[name]), name
            assert close(row[f"presented_{name}"], shown[name]), name
        assert close(row["letter_bias"], shown["effect"] - balanced["effect"])
        first = own[0]["test"]
        assert close(row["exact_p"], slow_exact([own[0]]))
        for bar in ("over_chance", "over_text"):
            assert close(row[bar], sum(found["test"][bar]["gain"] for found in own) / 3)
            assert row[f"{bar}_p"] == first[bar]["p"]
        assert close(row["retention_change"], sum(found["retention"]["change"] for found in own) / 3)
        family = [other for other in rows if other["icl"] == row["icl"]]
        assert len(family) == 3 * 2 * 2
        for name in ("p", "presented_p", "exact_p"):
            if row[name] is None:
                assert row[f"{name}_holm"] is None
                continue
            known = [other for other in family if other[name] is not None]
            adjusted = slow_holm([other[name] for other in known])[known.index(row)]
            assert close(row[f"{name}_holm"], adjusted), name

    means = mean_rows(study, {CASE: records})
    assert len(means) == 3 * 2 * 2 * 2
    for row in means:
        tasks = {"alignment": ["sycophancy", "truthfulqa"], "intelligence": ["openbookqa"]}.get(
            row["category"], ["sycophancy", "truthfulqa", "openbookqa"]
        )
        by_seed = [[records[cell_of(row | {"task": task}, seed)] for task in tasks] for seed in range(3)]
        expected = slow_figures(
            [sum(found["baseline"]["value"] for found in own) / len(own) for own in by_seed],
            [sum(found["test"]["gain"] for found in own) / len(own) for own in by_seed],
            [math.hypot(*(found["test"]["standard_error"] for found in own)) / len(own) for own in by_seed],
        )
        for name in expected:
            if not row["icl"] or name in ("baseline", "effect", "steered"):
                assert close(row[name], expected[name]), name
        assert close(row["exact_p"], slow_exact(by_seed[0]))
        assert (row["tasks"], row["seeds"]) == (len(tasks), 3)


def test_files_of_the_tables(finished: tuple[Study, dict[StudyCell, Any]]) -> None:
    whole = finished[1]
    study = replace(finished[0], variants=("pas_full",), icl=(0,))
    other = ModelCase("a/model", "an|adapter")
    files = study_files(study, {CASE: whole, other: dict(list(whole.items())[:20])})
    found = json.loads(files["study.json"])
    assert found["study"]["name"] == "tiny"
    rows = list(csv.DictReader(io.StringIO(files["effects.csv"].decode())))
    assert len(rows) == len(found["effects"]) == 12
    assert float(rows[0]["effect"]) == found["effects"][0]["effect"]
    assert {row["adapter"] for row in rows} == {"", "an|adapter"}
    text = files["study.md"].decode()
    assert "letter-balanced" in text
    assert "as Cui & Chen report it (arXiv:2509.22739" in text
    assert "an\\|adapter" in text
    tables = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {9, 11, 12, 13, 14, 17}
    pictures = [name for name in files if name.endswith(".png")]
    assert "effects-balanced-pas_full-residual-icl0-model1.png" in pictures
    assert "effects-presented-pas_full-mlp-icl0-model1.png" in pictures
    assert all(files[name].startswith(b"\x89PNG") for name in pictures)


def test_the_paper_letters_are_said_to_be_the_papers_protocol(tmp_path: Path) -> None:
    text = MINIMAL + "variants: mean_difference\nmethod: {letters: paper, layers: [1], scales: [1]}"
    study = Study.from_yaml(text)
    found = run_study(study, CASE, HashProbe(), data_of(study), tmp_path, ignore)
    assert "**as presented**: the paper's protocol" in study_files(study, {CASE: found})["study.md"].decode()
