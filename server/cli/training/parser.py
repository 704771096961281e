"""The arguments of `tiller train`, `evaluate`, `sweep` and `calibrate`; the task's options get their flags from
`vectors.training.options`. Values are read in `options.py`.
"""

from __future__ import annotations

import argparse
from typing import TypeAlias

from server.cli.training.generated_options import GENERATED, GROUP
from server.config import options
from server.keys import CLIENT_VARIABLE, JUDGE_VARIABLE
from vectors.formats import format_titles
from vectors.training.options import OPTIONS, SEED, Kind, Option
from vectors.training.values import Switch

COMMANDS = ("train", "evaluate", "sweep", "calibrate")
REPORT_COMMAND = "report"

ENGINE_SETTINGS = (
    "model",
    "device",
    "dtype",
    "kernels",
    "revision",
    "adapter",
    "chat_template",
    "max_model_len",
    "kv_cache_gib",
    "data_dir",
)
"""Settings of `tiller serve` that also apply to training in this process."""

_DATA_HELP = "labelled data (JSON, CSV or Parquet), or task:NAME from the paper, such as task:truthfulqa"
_VECTOR_HELP = (
    f"vector file ({format_titles()}), or NAME[@REVISION] in the registry: the server's with --url, otherwise the one "
    "in --data-dir"
)
_ROWS = """\
Rows of DATA are one of
  {"question", "choices", "answer": index or letter, "context"?}
  {"question", "correct_answer", "incorrect_answers"}
  {"question", "answer_matching_behavior", "answer_not_matching_behavior"}
  {"input": {"messages"}, "preferred_output", "non_preferred_output"}
  {"prompt"?, "chosen", "rejected"} or {"prompt"?, "positive", "negative"}
  {"text", "label"}: texts of two classes
or are laid out like a published data set; --map names fields of other names.
"""
_ENVIRONMENT = f"""\
Without --url, the model is loaded here with the settings of tiller serve, which can also
come from TILLER_… variables. With --url, the server does the work alongside its live
traffic; if it has keys, {CLIENT_VARIABLE} must be a manage key.
"""

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_training_commands(commands: _Commands) -> None:
    """Add the four commands."""
    _add_train(commands)
    _add_evaluate(commands)
    _add_sweep(commands)
    _add_calibrate(commands)


def add_report(commands: _Commands) -> None:
    """Add `tiller report`."""
    report = _command(
        commands,
        REPORT_COMMAND,
        "compute a report again from the outcomes beside it",
        "Compute every figure of FOLDER/report.json again from FOLDER/outcomes.jsonl, which has the\n"
        "model's answer to every item, show them, and say where the two differ.",
        "example: tiller report ./honest",
    )
    report.add_argument("folder", metavar="FOLDER", help="folder of a training, an evaluation or a sweep")
    report.add_argument("--json", action="store_true", help="print the figures and differences as JSON")


def _add_train(commands: _Commands) -> None:
    train = _command(
        commands,
        "train",
        "train a steering vector or a probe from labelled data",
        "Train a steering vector from labelled data by Painless Activation Steering\n"
        "(arXiv 2509.22739), test it on items that were held back, and say whether it helps. Or,\n"
        "with --kind probe, train a linear probe between two classes of texts.",
        f"{_ROWS}\nexample: tiller train quiz.jsonl --name honest --layers 3-5\n"
        f"example: tiller train beliefs.jsonl --name user-is-wrong --kind probe --prompt chat\n\n{_ENVIRONMENT}",
    )
    train.add_argument("data", metavar="DATA", help=_DATA_HELP)
    train.add_argument("--name", required=True, metavar="NAME", help="name of the vector")
    train.add_argument(
        "--kind", choices=("vector", "probe"), default="vector",
        help="what to train: a steering vector, or a probe, which reads a probability off the activations "
        "(default: vector)",
    )  # fmt: skip
    _add_options(train, "train", "probe")
    _add_data(train, has_validation=True, has_retention=True)
    _add_place(train, "./NAME")


def _add_evaluate(commands: _Commands) -> None:
    evaluate = _command(
        commands,
        "evaluate",
        "test an existing steering vector on labelled data",
        "Test a steering vector on labelled data: accuracy with and without it, how much of\n"
        "the change is only a matter of letters, and what it costs elsewhere. Or, with --prompts,\n"
        "on what a running server writes with and without it.",
        f"{_ROWS}\nexample: tiller evaluate honest/honest.safetensors quiz.jsonl --scale 1.5\n"
        f"example: tiller evaluate cheerful --prompts chat.jsonl --rule 'glad|happy' --url URL\n\n{_ENVIRONMENT}"
        f"For --prompts a use key will do. {JUDGE_VARIABLE} is the key for --judge, if it needs one.\n",
    )
    evaluate.add_argument(
        "vector",
        metavar="VECTOR",
        help=_VECTOR_HELP,
    )
    evaluate.add_argument("data", metavar="DATA", nargs="?", help=_DATA_HELP)
    _add_options(evaluate, "evaluate")
    _add_generated(evaluate)
    _add_data(evaluate, has_validation=False, has_retention=True)
    _add_place(evaluate, "./VECTOR-evaluation")


def _add_generated(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        GROUP,
        "Needs --url, and --rule, --words, --classifier or --judge. Of the options above,\n"
        "--scale, --prompt (chat unless given), --max-items and --seed apply here too.",
    )
    for option in GENERATED:
        _add_option(group, option)


def _add_sweep(commands: _Commands) -> None:
    sweep = _command(
        commands,
        "sweep",
        "train on increasing numbers of items, and show the accuracy for each",
        "Train on increasing numbers of items of one split, and test each time on the same held-out items.",
        f"{_ROWS}\nexample: tiller sweep quiz.jsonl --sizes 12,50,200\n\n{_ENVIRONMENT}",
    )
    sweep.add_argument("data", metavar="DATA", help=_DATA_HELP)
    _add_options(sweep, "sweep")
    _add_data(sweep, has_validation=True, has_retention=False)
    _add_place(sweep, "./DATA-sweep")


def _add_calibrate(commands: _Commands) -> None:
    calibrate = _command(
        commands,
        "calibrate",
        "measure how strong a steering vector may be",
        "Measure, for both signs, the scales at which a vector moves the next token by so much, and\n"
        "those up to which what is written stays fluent, and keep the safe range with the vector.",
        f"example: tiller calibrate cheerful --url URL\n\n{_ENVIRONMENT}",
    )
    calibrate.add_argument("vector", metavar="VECTOR", help=_VECTOR_HELP)
    calibrate.add_argument(
        "--prompts",
        dest="data",
        metavar="FILE",
        help="prompts to answer, with prompt or messages in each row (default: 24 that tiller brings)",
    )
    _add_options(calibrate, "calibrate")
    _add_place(calibrate, "./VECTOR-dose")
    calibrate.set_defaults(**dict.fromkeys(("negative", "data_folder", "letters", "seed")))


def _command(commands: _Commands, name: str, help_text: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=help_text,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_options(parser: argparse.ArgumentParser, *kinds: Kind) -> None:
    """Add the flags of the options of `kinds` of tasks, under the headings of the table."""
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for option in (*OPTIONS, SEED):
        if not {*kinds}.isdisjoint(option.uses):
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(option.group)
            _add_option(groups[option.group], option)


def _add_option(group: argparse._ActionsContainer, option: Option) -> None:
    example = f", as in {option.example}" if option.example else ""
    help_text = f"{option.help}{example} (default: {option.default_text})".replace("%", "%%")
    if isinstance(option.value, Switch):
        action = argparse.BooleanOptionalAction if option.is_negatable else "store_true"
        group.add_argument(option.flag, action=action, default=None, help=help_text)
    elif option.metavar is not None:
        group.add_argument(option.flag, metavar=option.metavar, help=help_text)


def _add_data(parser: argparse.ArgumentParser, *, has_validation: bool, has_retention: bool) -> None:
    group = parser.add_argument_group("more data")
    if has_validation:
        group.add_argument("--validation", metavar="FILE", help="items for choosing layer and scale, or task:NAME")
    group.add_argument(
        "--negative", metavar="FILE", help="texts of the unwanted class; DATA then has those of the wanted one"
    )
    if has_retention:
        group.add_argument(
            "--retention",
            metavar="FILE",
            help="questions or texts on which the model must not get worse, or task:NAME, such as task:mmlu",
        )
    group.add_argument(
        "--data-folder", metavar="FOLDER", help="folder with the published files of task:NAME (default: the hub)"
    )


def _add_place(parser: argparse.ArgumentParser, folder: str) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output", metavar="FOLDER", help=f"folder for the report and its files (default: {folder})")
    group.add_argument("--force", action="store_true", help="overwrite the files of an earlier run")
    group.add_argument("--json", action="store_true", help="print the report as JSON instead of tables")
    group = parser.add_argument_group("where to train")
    group.add_argument("--url", metavar="URL", help="URL of a running server that does the work")
    for option in options():
        if option.name in ENGINE_SETTINGS:
            flag = "--model" if option.is_positional else option.flag
            meaning = "folder or hub id of the model to steer" if option.is_positional else option.help
            group.add_argument(
                flag, metavar=option.metavar, help=f"{meaning} (default: {option.default_text})".replace("%", "%%")
            )
