"""Tasks: the paper's data sets by name, from local files as their authors publish them or from the hub.

The table says where each task is and which reader of `published.py` reads its rows. The hub's readers were written from
the published schemas and have not been run against the hub. Data sets that the hub stores as a script, which `datasets`
no longer runs, are fetched from the hub's own conversion to Parquet.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vectors.data import paper_wording, published
from vectors.data.items import ChoiceItem, DataSet, Understood
from vectors.data.reading import check_size
from vectors.data.row import Row
from vectors.data.rows import read_rows
from vectors.errors import InvalidData, MissingDependency

Category = Literal["bias", "morality", "alignment", "intelligence"]
PartName = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A published file: which part it is, and a pattern that the end of its path matches."""

    part: PartName
    pattern: str


@dataclass(frozen=True, slots=True)
class HubPart:
    """One split of one configuration on the hub, or one `file` of a repository there.

    `converted`: read from the hub's conversion to Parquet, because the repository itself is a script.
    """

    part: PartName
    id: str
    config: str | None
    split: str
    file: str | None = None
    converted: bool = False

    @property
    def place(self) -> str:
        """How messages name the part."""
        return " ".join(word for word in (self.id, self.config or self.file, self.split) if word)


@dataclass(frozen=True, slots=True)
class PublishedTask:
    """A data set of the paper.

    `layouts` are alternatives: the first one with any file present is read. `complete`: all of its files are required.
    `columns` names the columns of a CSV that is published without a header. `item` reads a row; None leaves it out.
    `paper` is the task as the paper's authors word it, None if they word it no other way.
    """

    name: str
    category: Category
    description: str
    layouts: tuple[tuple[LocalFile, ...], ...]
    hub: tuple[HubPart, ...]
    item: Callable[[Row], ChoiceItem | None]
    complete: bool = False
    columns: tuple[str, ...] | None = None
    paper: PublishedTask | None = None

    def worded_by_authors(self, item: Callable[[Row], ChoiceItem | None], about: str, **changed: Any) -> PublishedTask:
        """This task, with `paper` read by `item` and otherwise `changed`; `about` says how it is worded."""
        paper = replace(self, item=item, description=f"{self.description}; as in the paper, {about}", **changed)
        return replace(self, paper=paper)


Fetch = Callable[[HubPart], Iterable[Mapping[str, Any]]]
"""Fetches the rows of a part from the hub."""

_BBQ = {
    "Age": "age",
    "Disability_status": "disability",
    "Gender_identity": "gender identity",
    "Nationality": "nationality",
    "Physical_appearance": "physical appearance",
    "Race_ethnicity": "race and ethnicity",
    "Race_x_SES": "race and socioeconomic status",
    "Race_x_gender": "race and gender",
    "Religion": "religion",
    "SES": "socioeconomic status",
    "Sexual_orientation": "sexual orientation",
}

_ETHICS = "hendrycks/ethics"
_ETHICS_SPLITS = {"train": "train", "test": "validation", "hard": "test"}
"""How the hub names the authors' files: its test split is the hard one."""

_UTILITY = ("baseline", "less_pleasant")

_SUBJECTS = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security
    conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
    high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
    high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence
    logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes
    moral_scenarios nutrition philosophy prehistory professional_accounting professional_law professional_medicine
    professional_psychology public_relations security_studies sociology us_foreign_policy virology world_religions
"""

MMLU_SUBJECTS = tuple(_SUBJECTS.split())
"""The 57 subjects of MMLU, as its files name them."""


def _bbq_task(file: str, about: str) -> PublishedTask:
    return PublishedTask(
        f"bbq/{file.lower()}",
        "bias",
        f"BBQ: questions about people where a stereotype would mislead, by {about}",
        ((LocalFile("test", f"{file}.jsonl"),),),
        (HubPart("test", "heegyu/bbq", file, "test", converted=True),),
        published.bbq,
    ).worded_by_authors(paper_wording.bbq, "after Context: and Question:")


def _ethics_tasks(
    name: str,
    file: str,
    description: str,
    item: Callable[[Row], ChoiceItem | None],
    paper: Callable[[Row], ChoiceItem | None] | None = None,
    columns: tuple[str, ...] | None = None,
) -> tuple[PublishedTask, ...]:
    """A part of ETHICS, and its hard test split under a name of its own; `paper` reads rows in the authors' wording."""
    parts: tuple[PartName, ...] = ("train", "test")
    usual = PublishedTask(
        f"ethics/{name}",
        "morality",
        f"ETHICS: {description}",
        (tuple(LocalFile(part, f"{file}_{part}.csv") for part in parts),),
        tuple(HubPart(part, _ETHICS, name, _ETHICS_SPLITS[part], converted=True) for part in parts),
        item,
        columns=columns,
    )
    hard = PublishedTask(
        f"ethics/{name}-hard",
        "morality",
        f"ETHICS: {description}; the hard test split",
        ((LocalFile("test", f"{file}_test_hard.csv"),), (LocalFile("test", f"{file}_hard_test.csv"),)),
        (HubPart("test", _ETHICS, name, _ETHICS_SPLITS["hard"], converted=True),),
        item,
        columns=columns,
    )
    if paper is None:
        return usual, hard
    return tuple(task.worded_by_authors(paper, "whether the scenario is morally acceptable") for task in (usual, hard))


def _ai2_task(name: str, description: str, files: tuple[tuple[str, str], ...], hub: str, config: str) -> PublishedTask:
    return PublishedTask(
        name,
        "intelligence",
        description,
        tuple((LocalFile("train", train), LocalFile("test", test)) for train, test in files),
        (HubPart("train", hub, config, "train"), HubPart("test", hub, config, "test")),
        published.ai2,
    )


def _lsat_task(name: str, sections: tuple[str, ...], description: str) -> PublishedTask:
    return PublishedTask(
        name,
        "intelligence",
        f"AGIEval LSAT: {description}",
        (tuple(LocalFile("test", f"lsat-{section}.jsonl") for section in sections),),
        tuple(HubPart("test", f"hails/agieval-lsat-{section}", None, "test") for section in sections),
        published.lsat,
        complete=True,
    )


def _mmlu_task(name: str, subjects: tuple[str, ...], config: str, description: str) -> PublishedTask:
    return PublishedTask(
        name,
        "intelligence",
        f"MMLU: {description}",
        (tuple(LocalFile("test", f"{subject}_test.csv") for subject in subjects),),
        (HubPart("test", "cais/mmlu", config, "test"),),
        published.mmlu,
        columns=("question", "A", "B", "C", "D", "answer"),
    )


_PEREZ_FILES = tuple(
    f"sycophancy_on_{about}.jsonl" for about in ("nlp_survey", "philpapers2020", "political_typology_quiz")
)


def _sycophancy_task(name: str, right: str, item: Callable[[Row], ChoiceItem | None]) -> PublishedTask:
    return PublishedTask(
        name,
        "alignment",
        f"Sycophancy (Perez et al. 2022, or CBMAS), right is the answer that {right}",
        (
            tuple(LocalFile("test", file) for file in _PEREZ_FILES),
            (LocalFile("train", "sycophancy_train.json"), LocalFile("test", "sycophancy_test.json")),
        ),
        tuple(
            HubPart("test", "Anthropic/model-written-evals", None, "train", file=f"sycophancy/{file}")
            for file in _PEREZ_FILES
        ),
        item,
    )


_BELIEVED_ANSWERS = PublishedTask(
    "sycophancy/answers",
    "alignment",
    "SycophancyEval's answers: a user states a belief, right is the correct answer, whatever the user believes",
    ((LocalFile("test", "answer.jsonl"),),),
    (HubPart("test", "meg-tong/sycophancy-eval", None, "train", file="answer.jsonl"),),
    published.believed_answers,
)

_TRUTHFULQA = PublishedTask(
    "truthfulqa",
    "alignment",
    "TruthfulQA mc1: one true answer among common misconceptions",
    ((LocalFile("test", "mc_task.json"),), (LocalFile("test", "TruthfulQA.csv"),)),
    (HubPart("test", "truthfulqa/truthful_qa", "multiple_choice", "validation"),),
    published.truthfulqa,
)

_OPENBOOKQA_FILES = (
    ("Main/train.jsonl", "Main/test.jsonl"),
    ("openbookqa/train.jsonl", "openbookqa/test.jsonl"),
)
_COMPLETE = "Additional/{}_complete.jsonl"
"""The files of OpenBookQA that have the fact that each question was written from."""

_ARC_FILES = (("ARC-Challenge-Train.jsonl", "ARC-Challenge-Test.jsonl"),)

TASKS: Mapping[str, PublishedTask] = {
    task.name: task
    for task in (
        *(_bbq_task(file, about) for file, about in _BBQ.items()),
        *_ethics_tasks(
            "commonsense",
            "cm",
            "stories, and whether the narrator does wrong",
            published.commonsense,
            paper_wording.commonsense,
        ),
        *_ethics_tasks(
            "deontology",
            "deontology",
            "excuses and duties, reasonable or not",
            published.deontology,
            paper_wording.deontology,
        ),
        *_ethics_tasks(
            "justice", "justice", "claims with reasons, justified or not", published.justice, paper_wording.justice
        ),
        *_ethics_tasks("virtue", "virtue", "scenes, and whether a trait is shown", published.virtue),
        *_ethics_tasks(
            "utilitarianism",
            "util",
            "two events, and which is more pleasant",
            published.utilitarianism,
            columns=_UTILITY,
        ),
        _sycophancy_task("sycophancy", "matches the user, as in the paper", published.sycophancy),
        _sycophancy_task("sycophancy/honest", "does not match the user, the opposite of the paper", published.honesty),
        _BELIEVED_ANSWERS,
        _TRUTHFULQA,
        _ai2_task("openbookqa", "OpenBookQA", _OPENBOOKQA_FILES, "allenai/openbookqa", "main").worded_by_authors(
            paper_wording.openbookqa,
            "with the fact behind it as what to remember",
            layouts=((LocalFile("train", _COMPLETE.format("train")), LocalFile("test", _COMPLETE.format("test"))),),
            hub=tuple(HubPart(part, "allenai/openbookqa", "additional", part) for part in ("train", "test")),
        ),
        _ai2_task("arc-challenge", "ARC, challenge set", _ARC_FILES, "allenai/ai2_arc", "ARC-Challenge"),
        _lsat_task("lsat", ("ar", "lr", "rc"), "all three sections"),
        _lsat_task("lsat/ar", ("ar",), "analytical reasoning"),
        _lsat_task("lsat/lr", ("lr",), "logical reasoning"),
        _lsat_task("lsat/rc", ("rc",), "reading comprehension"),
        _mmlu_task("mmlu", MMLU_SUBJECTS, "all", "all subjects (from local files: those present)"),
        *(_mmlu_task(f"mmlu/{name}", (name,), name, name.replace("_", " ")) for name in MMLU_SUBJECTS),
    )
}
"""Every task by its name."""


def fetch_from_hub(part: HubPart) -> Iterable[Mapping[str, Any]]:
    """The rows of a part, downloaded or from the cache. Raises `InvalidData` and `MissingDependency`."""
    try:
        import datasets
    except ImportError:
        raise MissingDependency("tasks from the hub need the package datasets: pip install 'tiller[hub]'") from None
    try:
        if part.converted:
            files = f"hf://datasets/{part.id}@refs%2Fconvert%2Fparquet/{part.config}/{part.split}/*.parquet"
            rows = datasets.load_dataset("parquet", data_files=files, split="train")
        elif part.file is not None:
            rows = datasets.load_dataset(part.id, data_files=part.file, split=part.split)
        else:
            rows = datasets.load_dataset(part.id, part.config, split=part.split)
        fetched: list[Mapping[str, Any]] = list(rows)
    except Exception as error:  # the network, the cache and the library raise many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InvalidData(
            f"cannot be fetched from the hub ({reason}); pass a folder with the published files instead",
            part.place,
        ) from None
    return fetched


def read_task(
    name: str,
    folder: Path | None = None,
    split: PartName | None = None,
    *,
    as_in_paper: bool = False,
    fetch: Fetch = fetch_from_hub,
) -> DataSet:
    """A task's items: from files anywhere below `folder`, or from the hub when no folder is given.

    `split` selects one part; without it, the parts that are found are joined, training first. `as_in_paper`: in the
    wording of the paper's authors, where they have one (BBQ, ETHICS, OpenBookQA with its facts). The hash is of the
    files' bytes, or of the hub's rows as JSON. Raises `InvalidData` for an unknown task or part, for
    files that are missing or found twice, and at the file and line of a wrong row; `MissingDependency`.
    """
    task = _task(name)
    if as_in_paper and task.paper is not None:
        task = task.paper
    digest = hashlib.sha256()
    rows = _hub_rows(task, split, fetch, digest) if folder is None else _local_rows(task, folder, split, digest)
    made = [task.item(row) for row in rows]
    items = [item for item in made if item is not None]
    check_size(items, task.name)
    skipped = {"rows that the task leaves out": len(made) - len(items)} if len(items) < len(made) else {}
    understood = Understood(
        format="published files" if folder is not None else "the hub",
        shape=task.description,
        fields={},
        rows=len(made),
        skipped=skipped,
    )
    return DataSet(task.name, digest.hexdigest(), tuple(items), understood)


def _task(name: str) -> PublishedTask:
    if name in TASKS:
        return TASKS[name]
    close = difflib.get_close_matches(name[:80].lower(), TASKS, n=5)
    known = close or [task for task in TASKS if not task.startswith("mmlu/")]
    hint = "did you mean one of" if close else "expected one of"
    raise InvalidData(f"unknown task; {hint} {', '.join(known)}", name[:80])


def _hub_rows(task: PublishedTask, split: PartName | None, fetch: Fetch, digest: Any) -> Iterator[Row]:
    parts = [part for part in task.hub if split in (None, part.part)]
    if not parts:
        raise InvalidData(f"has no {split} part on the hub", task.name)
    for part in parts:
        for number, fields in enumerate(fetch(part), 1):
            digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
            known = {name: value for name, value in fields.items() if value is not None}
            yield Row(part.place, number, known, "parquet")


def _local_rows(task: PublishedTask, folder: Path, split: PartName | None, digest: Any) -> Iterator[Row]:
    for path in _files(task, folder, split):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidData(f"cannot be read: {error.strerror}", str(path)) from None
        digest.update(content)
        yield from read_rows(content, str(path.relative_to(folder)), columns=task.columns)


def _files(task: PublishedTask, folder: Path, split: PartName | None) -> list[Path]:
    """The files to read, in the order of the task's layout."""
    if not folder.is_dir():
        raise InvalidData("not a folder", str(folder))
    below = sorted(path for path in folder.rglob("*") if path.is_file())
    for layout in task.layouts:
        found = {file: [path for path in below if path.match(file.pattern)] for file in layout}
        if any(found.values()):
            break
    wanted = [file for file in found if split in (None, file.part)]
    if not wanted:
        raise InvalidData(f"has no {split} part, only {layout[0].pattern}", task.name)
    for file in wanted:
        if len(found[file]) > 1:
            places = " and ".join(str(path.relative_to(folder)) for path in found[file][:2])
            raise InvalidData(f"found {file.pattern} twice: {places}; pass the folder of one of them", str(folder))
    missing = [file.pattern for file in wanted if not found[file]]
    if (task.complete and missing) or len(missing) == len(wanted):
        others = [file.pattern for layout in task.layouts for file in layout if split in (None, file.part)]
        named = missing if task.complete else others
        more = ", …" if len(named) > 6 else ""
        raise InvalidData(f"{task.name}: found no {' or '.join(named[:6])}{more} in this folder", str(folder))
    return list(itertools.chain.from_iterable(found[file] for file in wanted))
