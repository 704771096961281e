"""SteeringTrainer: runs training jobs on this server's own engine, alongside its live traffic.

It turns a job's files into data and names of vectors into revisions; `vectors.training.task` trains, and `server.jobs`
manages the jobs.
"""

from __future__ import annotations

from collections.abc import Callable

from server.engine.protocol import Engine
from server.errors import from_vectors_error
from server.jobs.records import JobRecord, JobRequest
from server.jobs.trainer import Outcome, Progress, ReadFile
from server.steering.resolution import SteeringRefused, SteeringSpec, resolve_plan
from server.text import TextProcessor
from server.training.engine_view import EngineView
from vectors.behaviour.prompts import read_prompts
from vectors.calibration.calibrate import check_can_calibrate
from vectors.calibration.task import carry_out_calibration, with_calibration
from vectors.cancellation import cancellable, check_cancelled
from vectors.data import ReadOptions, read_data, read_retention
from vectors.errors import InvalidMethod
from vectors.store import VectorStore
from vectors.training.model_view import Steering
from vectors.training.options import NEGATIVE_FILE
from vectors.training.task import Task, carry_out, check_installed
from vectors.training.train import TrainingData, check_fit
from vectors.vector import SteeringVector


class SteeringTrainer:
    """Implements `server.jobs.trainer.Trainer` on `engine`."""

    def __init__(self, engine: Engine, text: TextProcessor, store: VectorStore) -> None:
        self._engine = engine
        self._text = text
        self._store = store

    def check(self, job: JobRequest) -> None:
        """See `Trainer.check`: checks the options, the sites and layers, and the vector to evaluate."""
        check_installed()
        if job.model != self._engine.info.model_id:
            raise InvalidMethod(
                f"model: the job is for {job.model!r}, but this server runs {self._engine.info.model_id!r}", "model"
            )
        task = _task_of(job)
        users = ((job.validation_file, ("train", "probe", "sweep")), (job.retention_file, ("train", "evaluate")))
        for given, kinds in users:
            if given is not None and task.kind not in kinds:
                raise InvalidMethod(f"the task {task.kind} does not use the file {given}", "task")
        check_fit(task.method, EngineView(self._engine, self._text))
        for entry in self._steering(task):
            if task.kind == "calibrate":
                check_can_calibrate(entry.vector, self._engine.info)

    def run(
        self,
        job: JobRecord,
        read_file: ReadFile,
        report: Callable[[Progress], None],
        is_cancelled: Callable[[], bool],
    ) -> Outcome:
        """See `Trainer.run`."""
        task = _task_of(job)

        def report_or_stop(progress: Progress) -> None:
            check_cancelled()
            report(progress)

        with cancellable(is_cancelled):
            view = EngineView(self._engine, self._text, is_cancelled)
            steering = self._steering(task)
            if task.kind == "calibrate":
                return self._calibrate(job, task, view, steering[0].vector, read_file, report_or_stop)
            data = training_data(job, read_file, task.reading)
            done = carry_out(task, view, data, steering=steering, seed=job.seed, report=report_or_stop)
            if task.calibrate:
                done = with_calibration(done, task, view, report_or_stop)
        return Outcome(done.vector, done.reason, done.files, done.num_tokens, done.is_recommended)

    def _calibrate(
        self,
        job: JobRecord,
        task: Task,
        view: EngineView,
        vector: SteeringVector,
        read_file: ReadFile,
        report: Callable[[Progress], None],
    ) -> Outcome:
        """Calibrate a vector of the registry. It is not published if the name has a newer revision by then."""
        name, content = read_file(job.training_file)
        prompts = [prompt.messages for prompt in read_prompts(content, name)]
        done = carry_out_calibration(task, view, vector, prompts, content, name, report)
        assert task.vector is not None
        own, _, revision = task.vector.partition("@")
        if not revision and self._store.get(own).revision != vector.revision:
            reason = f"{own} has changed since the calibration began; calibrate it again"
            return Outcome(None, reason, done.files, done.num_tokens, is_recommended=False)
        return Outcome(done.vector, done.reason, done.files, done.num_tokens, done.is_recommended)

    def _steering(self, task: Task) -> tuple[Steering, ...]:
        if task.vector is None:
            return ()
        name, _, revision = task.vector.partition("@")
        try:
            plan = resolve_plan([SteeringSpec(name, revision or None, task.scale)], self._store, self._engine.info)
        except SteeringRefused as error:
            raise InvalidMethod(from_vectors_error(error.reason).message, "vector") from error
        (entry,) = plan.entries
        return (Steering(self._store.get(name, entry.revision).vector, entry.applied.scale),)


def training_data(job: JobRecord, read_file: ReadFile, reading: ReadOptions) -> TrainingData:
    """The job's files as data. Raises `InvalidData` naming the file and line."""
    name, content = read_file(job.training_file)
    negative = None
    if job.negative_file is not None:
        other, other_content = read_file(job.negative_file)
        negative = other_content, other
    items = read_data(content, name, reading, negative=negative)
    validation = None
    if job.validation_file is not None:
        name, content = read_file(job.validation_file)
        validation = read_data(content, name, reading)
    if job.retention_file is None:
        return TrainingData(items, validation)
    name, content = read_file(job.retention_file)
    return TrainingData(items, validation, *read_retention(content, name, reading.without_map()))


def _task_of(job: JobRequest | JobRecord) -> Task:
    return Task.from_json({name: value for name, value in job.steering.items() if name != NEGATIVE_FILE.name})
