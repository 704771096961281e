"""Training on a running server, over OpenAI's Files and Fine-tuning APIs: upload, create, follow, download."""

from __future__ import annotations

import argparse
import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.cli.client.connection import ServerClient, connect, expect, not_understood
from server.cli.errors import USAGE, CommandFailed
from server.cli.logs import set_up_logging
from server.cli.training.files import REPORT, upload_of
from server.cli.training.options import seed_of
from server.cli.training.progress import Display, display_progress
from vectors.training.progress import Progress

_JOBS = "/v1/fine_tuning/jobs"
_INTERRUPTED = 130
_SECONDS_BETWEEN_POLLS = 0.5
_PAGE = 100
_MODELS = {"data": [{"id": str}]}
_FILE = {"id": str}
_JOB = {
    "id": str,
    "status": str,
    "result_files": [str],
    "fine_tuned_model": str | None,
    "error": dict | None,
}
_EVENT = {"id": str, "level": str, "message": str, "type": str, "data": dict | None}
_METRICS = {
    "phase": str,
    "num_done": int,
    "num_total": int,
    "best": int | float | None,
    "seconds_left": int | float | None,
}
_FINAL = ("succeeded", "failed", "cancelled")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


@dataclass(frozen=True, slots=True)
class Fetched:
    """The results of a job on a server: its files, the report first, and the id of the steered model, if any."""

    job: str
    files: tuple[tuple[str, bytes], ...]
    steered_model: str | None


def train_on_server(arguments: argparse.Namespace, environ: Mapping[str, str], options: Mapping[str, Any]) -> Fetched:
    """Have the server at `--url` carry out the task that `options` give. Raises `CommandFailed`.

    Ctrl-C asks the server to cancel the job.
    """
    level = environ.get("TILLER_LOG_LEVEL", "").strip().lower()
    set_up_logging(level if level in ("debug", "warning", "error") else "info", as_json=False)
    body: dict[str, Any] = {"seed": seed_of(arguments)}
    if arguments.command == "train":
        body["suffix"] = arguments.name
    if arguments.command in ("evaluate", "calibrate"):
        check_registered(arguments.vector)
    with connect(ServerClient, arguments, environ) as client, display_progress() as display:
        body["model"] = base_model(client)
        with _uploads(client, arguments, display) as files:
            steering = dict(options)
            steering |= {f"{role}_file": files[role] for role in ("retention", "negative") if role in files}
            if "data" in files:
                body["training_file"] = files["data"]
            if "validation" in files:
                body["validation_file"] = files["validation"]
            body["method"] = {"type": "steering", "steering": steering}
            job = client.read("POST", _JOBS, _JOB, json=body)
        display.note(f"the server accepted the job {job['id']}")
        return _fetch_results(client, _follow(client, job["id"], display))


def check_registered(vector: str) -> None:
    """Raise `CommandFailed` if `vector` is a file, which a server cannot evaluate."""
    if Path(vector).suffix and Path(vector).is_file():
        raise CommandFailed(
            f"VECTOR {vector} is a file, but with --url it must be a name in the server's registry; "
            f"upload it first: tiller vectors put NAME {vector}",
            USAGE,
        )


def base_model(client: ServerClient) -> str:
    """The id of the server's model without steering. Raises `CommandFailed`."""
    models = client.read("GET", "/v1/models", _MODELS)["data"]
    if not models:
        raise CommandFailed("the server lists no models")
    return str(models[0]["id"])  # the others are the same model, steered


@contextlib.contextmanager
def _uploads(client: ServerClient, arguments: argparse.Namespace, display: Display) -> Iterator[dict[str, str]]:
    """The ids of the uploaded data by option; deleted if the context fails, as no job needs them then."""
    files: dict[str, str] = {}
    try:
        for option in ("data", "validation", "retention", "negative"):
            place = getattr(arguments, option, None)
            if place is not None:
                upload = upload_of(place, arguments.data_folder, as_in_paper=arguments.letters == "paper")
                display.report(Progress(f"uploading {upload[0]}", 0, 0))
                sent = {"files": {"file": upload}, "data": {"purpose": "fine-tune"}}
                files[option] = client.read("POST", "/v1/files", _FILE, **sent)["id"]
        yield files
    except BaseException:
        for identifier in files.values():
            with contextlib.suppress(CommandFailed):
                client.call("DELETE", f"/v1/files/{identifier}")
        raise


def _follow(client: ServerClient, job: str, display: Display) -> dict[str, Any]:
    """Wait for the job to end, showing its events; returns the job."""
    pause = threading.Event()
    last: str | None = None
    try:
        while True:
            found: dict[str, Any] = client.read("GET", f"{_JOBS}/{job}", _JOB)
            for event in _events_after(client, job, last):
                last = event["id"]
                _show(event, display)
            if found["status"] in _FINAL:
                return found
            if found["status"] != "running":
                display.report(Progress("waiting for its turn", 0, 0))
            pause.wait(_SECONDS_BETWEEN_POLLS)
    except KeyboardInterrupt:
        raise CommandFailed(_cancel(client, job), _INTERRUPTED) from None
    except CommandFailed as error:
        raise CommandFailed(f"{error}; the job {job} may continue on the server", error.exit_code) from None


def _events_after(client: ServerClient, job: str, last: str | None) -> list[dict[str, Any]]:
    """The events after `last`, oldest first."""
    new: list[dict[str, Any]] = []
    query: dict[str, str | int] = {"limit": _PAGE}
    while True:
        page = client.read("GET", f"{_JOBS}/{job}/events", {"data": [_EVENT], "has_more": bool}, params=query)
        for event in page["data"]:
            if event["id"] == last:
                return new[::-1]
            new.append(event)
        if not page["has_more"] or not page["data"]:
            return new[::-1]
        query["after"] = page["data"][-1]["id"]


def _show(event: Mapping[str, Any], display: Display) -> None:
    if event["type"] == "metrics":
        data = expect(event.get("data"), _METRICS)
        display.report(Progress(*(data.get(name) for name in _METRICS)))
    elif event["level"] == "warn":
        display.note(event["message"])


def _cancel(client: ServerClient, job: str) -> str:
    try:
        client.call("POST", f"{_JOBS}/{job}/cancel")
    except CommandFailed as error:
        return f"interrupted; the job {job} could not be cancelled: {error}"
    return f"interrupted; the server is cancelling the job {job}"


def _fetch_results(client: ServerClient, job: Mapping[str, Any]) -> Fetched:
    """The files of a job that has ended. Raises `CommandFailed` when it failed or was cancelled."""
    if job["status"] == "cancelled":
        raise CommandFailed(f"the job {job['id']} was cancelled")
    if job["status"] == "failed":
        message = (job.get("error") or {}).get("message")
        raise CommandFailed(f"the job {job['id']} failed: {message or 'no reason given'}")
    files = []
    for identifier in job["result_files"]:
        name = client.read("GET", f"/v1/files/{identifier}", {"filename": str})["filename"]
        if _FILE_NAME.fullmatch(name) is None:  # it becomes part of a path
            raise not_understood()
        files.append((name, client.call("GET", f"/v1/files/{identifier}/content")))
    if not files or files[0][0] != REPORT:
        raise not_understood()
    return Fetched(job["id"], tuple(files), job.get("fine_tuned_model"))
