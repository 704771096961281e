"""Training in this process: loads the model as `tiller serve` does, and runs it through the engine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.errors import USAGE, CommandFailed
from server.cli.loading.engine import loading, readable_failures, source_of, start_engine
from server.cli.logs import set_up_logging
from server.cli.training.files import published_task, read_file
from server.cli.training.options import seed_of
from server.cli.training.parser import ENGINE_SETTINGS
from server.cli.training.progress import display_progress
from server.config import Settings, SettingsRefused
from server.demo import VECTORS_DIR

if TYPE_CHECKING:
    from server.engine.protocol import ModelInfo
    from vectors.data import DataSet, ReadOptions
    from vectors.data.items import Message
    from vectors.errors import InvalidMethod
    from vectors.training.task import Done
    from vectors.training.train import TrainingData
    from vectors.vector import SteeringVector

_BATCH_TOKENS = 2048
"""Tokens of one step; nobody else is waiting for the engine."""


def train_here(arguments: argparse.Namespace, environ: Mapping[str, str], options: Mapping[str, Any]) -> Done:
    """Carry out the task that `options` give on a model that is loaded for it. Raises `CommandFailed`."""
    settings = _settings(arguments, environ)
    source = source_of(settings)
    seed = seed_of(arguments)
    from server.training.engine_view import EngineView
    from vectors.calibration.calibrate import check_can_calibrate
    from vectors.calibration.task import carry_out_calibration, with_calibration
    from vectors.errors import InvalidMethod, VectorsError
    from vectors.training.model_view import Steering
    from vectors.training.task import Task, carry_out
    from vectors.training.train import check_fit

    try:
        task = Task.from_json(options)
        is_calibration = task.kind == "calibrate"
        prompts = _prompts(arguments) if is_calibration else None
        data = None if is_calibration else _data(arguments, task.reading)
        found = _Vector(task.vector, settings) if task.vector is not None else None
        with contextlib.ExitStack() as cleanup:
            with readable_failures(settings), loading(settings, source) as begin:
                engine, text = start_engine(settings, source, cleanup, begin)
            view = EngineView(engine, text)
            steering = []
            if found is not None:
                vector = found.decoded(engine.info)
                steering.append(Steering(vector, vector.default_scale if task.scale is None else task.scale))
            if prompts is not None:
                check_can_calibrate(steering[0].vector, engine.info)
                display = cleanup.enter_context(display_progress(can_draw=not settings.log_json))
                return carry_out_calibration(task, view, steering[0].vector, *prompts, display.report)
            assert data is not None
            check_fit(task.method, view)
            display = cleanup.enter_context(display_progress(can_draw=not settings.log_json))
            done = carry_out(task, view, data, steering=steering, seed=seed, report=display.report)
            return with_calibration(done, task, view, display.report) if task.calibrate else done
    except InvalidMethod as error:
        raise CommandFailed(_naming_the_flag(error), USAGE) from None
    except VectorsError as error:
        raise CommandFailed(str(error)) from None


def _settings(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    flags = {name: getattr(arguments, name) for name in ENGINE_SETTINGS}
    try:
        settings = Settings.from_sources(flags, environ)
    except SettingsRefused as error:
        raise CommandFailed(str(error), USAGE) from None
    set_up_logging(settings.log_level, as_json=settings.log_json)
    if environ.get("TILLER_MAX_BATCH_TOKENS"):
        return settings
    return dataclasses.replace(settings, max_batch_tokens=_BATCH_TOKENS)


def _data(arguments: argparse.Namespace, reading: ReadOptions) -> TrainingData:
    """All data, read before the model is loaded. Raises `VectorsError` and `CommandFailed`."""
    from vectors.data import read_retention
    from vectors.training.train import TrainingData

    published = partial(published_task, folder=arguments.data_folder, as_in_paper=arguments.letters == "paper")
    items = published(arguments.data) or _items(arguments.data, reading, arguments.negative)
    validation = getattr(arguments, "validation", None)
    chosen_by = None if validation is None else published(validation) or _items(validation, reading)
    retention = getattr(arguments, "retention", None)
    if retention is None:
        return TrainingData(items, chosen_by)
    if task := published(retention):
        return TrainingData(items, chosen_by, task)
    path = Path(retention).expanduser()
    return TrainingData(items, chosen_by, *read_retention(read_file(path), path.name, reading.without_map()))


def _prompts(arguments: argparse.Namespace) -> tuple[list[Sequence[Message]], bytes, str]:
    """The prompts of a calibration, the bytes of their file and its name. Raises `VectorsError` and `CommandFailed`."""
    from vectors.behaviour.prompts import read_prompts
    from vectors.calibration.prompts import PROMPTS_FILE, prompts_jsonl

    content, name = prompts_jsonl(), PROMPTS_FILE
    if arguments.data is not None:
        path = Path(arguments.data).expanduser()
        content, name = read_file(path), path.name
    return [prompt.messages for prompt in read_prompts(content, name)], content, name


def _items(place: str, reading: ReadOptions, negative: str | None = None) -> DataSet:
    """The items of a file."""
    from vectors.data import read_data

    path = Path(place).expanduser()
    other = None if negative is None else Path(negative).expanduser()
    unwanted = None if other is None else (read_file(other), other.name)
    return read_data(read_file(path), path.name, reading, negative=unwanted)


class _Vector:
    """The vector to evaluate: a file's bytes, or a vector of the registry. The constructor raises `CommandFailed`."""

    def __init__(self, place: str, settings: Settings) -> None:
        path = Path(place).expanduser()
        self._place = place
        self._content: bytes | None = None
        self._stored: SteeringVector | None = None
        if path.is_file():
            self._content = read_file(path)
            return
        if "/" in place:
            raise CommandFailed(f"{path} cannot be read: no such file")
        self._stored = _of_registry(place, settings)
        if self._stored is None:
            shipped = VECTORS_DIR / f"{place}.safetensors"
            if settings.model is not None or not shipped.is_file():
                raise CommandFailed(
                    f"VECTOR {place}: no such file, and no vector of that name in {settings.data_dir}; "
                    "use --url to evaluate a vector on a running server"
                )
            self._content = read_file(shipped)

    def decoded(self, model: ModelInfo) -> SteeringVector:
        """The vector, checked to fit the model. Raises `InvalidVector`."""
        from vectors.errors import InvalidVector
        from vectors.formats import decode

        try:
            vector = self._stored
            if self._content is not None:
                vector = decode(self._content, num_layers=model.num_layers, hidden_size=model.hidden_size)
            assert vector is not None
            vector.fit(model.num_layers, model.hidden_size, model.sites)
        except InvalidVector as error:
            raise CommandFailed(f"VECTOR {self._place}: {error}") from None
        return vector


def _of_registry(place: str, settings: Settings) -> SteeringVector | None:
    """The vector `NAME[@REVISION]` of the data directory, None when it has no such name."""
    from vectors.errors import StoreLocked, VectorNotFound
    from vectors.store import VectorStore

    folder = settings.data_dir / "vectors"
    if not folder.is_dir():
        return None
    name, _, revision = place.partition("@")
    try:
        with VectorStore(folder) as store:
            return store.get(name, revision or None).vector
    except VectorNotFound:
        return None
    except StoreLocked:
        raise CommandFailed(
            f"VECTOR {place}: no such file, and another process has the registry {folder} open; "
            "evaluate on that server with --url, or name a file"
        ) from None
    except OSError as error:
        raise CommandFailed(f"{error.filename or folder} cannot be read: {error.strerror}") from None


def _naming_the_flag(error: InvalidMethod) -> str:
    """`--icl: expected …` for `icl: expected …`."""
    param, message = error.param, str(error)
    if param is None or not message.startswith(f"{param}:"):
        return message
    return "--" + param.replace("_", "-") + message.removeprefix(param)
