"""The parts of a server that routes use, bound to the application once: `services_of(request)`.

Whoever built the parts closes them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from anyio import CapacityLimiter
from starlette.requests import Request

from server.answers.compiler import NUM_AT_ONCE, GrammarCompiler
from server.api.http.metrics import Metrics
from server.api.http.open_streams import OpenStreams
from server.api.http.places import Places
from server.api.http.rate_limits import RateLimits
from server.config import Settings
from server.engine.errors import EngineStopped
from server.engine.protocol import Engine
from server.errors import Unavailable
from server.jobs.worker import JobWorker
from server.keys import ApiKeys
from server.response_store import ResponseStore
from server.steering.dose import NO_POLICY, DosePolicy
from server.steering.inline import InlineVectors
from server.text import TextProcessor
from server.watchdog import Watchdog
from vectors.store import VectorStore

_RETRY_SOON = {"Retry-After": "5"}

MAX_WAITING_TO_COMPILE = 64
"""Requests that wait until their schemas can be compiled; others get 429."""

WRONG_KEYS_PER_MINUTE = 60
"""Wrong keys of one client address that are answered at once; answers to more of them are delayed."""


@dataclass(frozen=True)
class Services:
    """The built parts of a server."""

    settings: Settings
    engine: Engine
    text: TextProcessor
    store: VectorStore
    keys: ApiKeys
    metrics: Metrics
    grammars: GrammarCompiler
    watchdog: Watchdog
    jobs: JobWorker | None = None
    rate_limits: RateLimits | None = None
    token_limits: RateLimits | None = None
    compiling: Places = field(default_factory=lambda: Places(NUM_AT_ONCE, MAX_WAITING_TO_COMPILE))
    wrong_keys: RateLimits = field(default_factory=lambda: RateLimits(WRONG_KEYS_PER_MINUTE))
    responses: ResponseStore | None = None
    streams: OpenStreams = field(default_factory=OpenStreams)
    dose: DosePolicy = NO_POLICY
    inline: InlineVectors = field(default_factory=InlineVectors)
    looking_at_storage: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    """A disk that hangs takes one thread from others, however often `/ready` is asked."""
    started_at: int = field(default_factory=lambda: int(time.time()))

    @property
    def max_upload_bytes(self) -> int:
        """The largest body of a request that uploads a file."""
        return int(self.settings.max_upload_mib * 2**20)

    def check_alive(self) -> None:
        """Raise `Unavailable` when the server does not work and will not recover."""
        trouble = self.watchdog.trouble()
        if trouble is not None and trouble.is_lasting:
            raise Unavailable(trouble.reason, code="server_broken", headers=_RETRY_SOON)

    def check_accepting(self) -> None:
        """Raise `EngineStopped` when new work is refused, and `Unavailable` when it could not be done."""
        self.check_alive()
        if not self.engine.is_accepting:
            raise EngineStopped

    def check_ready(self) -> None:
        """Raise the same, and `Unavailable` while the server is in trouble that may pass, so that others get work."""
        self.check_accepting()
        if (trouble := self.watchdog.trouble()) is not None:
            raise Unavailable(trouble.reason, code="not_ready", headers=_RETRY_SOON)

    def check_storage(self) -> None:
        """Raise `StorageGone` while a part of the data folder is not where it was opened. May wait for the disk."""
        self.store.check_still_there()
        if self.jobs is not None:
            self.jobs.database.check_still_there()
            self.jobs.files.check_still_there()
        if self.responses is not None:
            self.responses.check_still_there()

    def training(self) -> JobWorker:
        """The worker that stores files and runs training jobs. Raises `Unavailable` if this server has none."""
        if self.jobs is None:
            raise Unavailable("this server does not train vectors", code="training_not_available")
        return self.jobs


def services_of(request: Request) -> Services:
    """The services of the application that serves `request`."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services
