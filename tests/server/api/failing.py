"""An engine that fails in the middle of its answers."""

from __future__ import annotations

from server.engine.engine import BatchingEngine
from server.engine.errors import WorkFailed
from server.engine.request import EngineRequest, FinishReason, OutputSink, TokenOutput


class FailingEngine(BatchingEngine):
    """Fails a request after three tokens, as a step that raises would."""

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """See `protocol.Engine.submit`."""
        num_tokens = 0

        def failing(output: TokenOutput) -> None:
            nonlocal num_tokens
            num_tokens += 1
            if num_tokens < 3:
                sink(output)
            elif num_tokens == 3:
                sink(
                    TokenOutput(
                        request.request_id, finish_reason=FinishReason.ERROR, error=WorkFailed("secret of the house")
                    )
                )

        super().submit(request, failing)
