"""Whether a request can be run at all, said before it queues. It knows the model's numbers, and no queue or tensor."""

from __future__ import annotations

from server.engine.protocol import ModelInfo
from server.engine.request import GenerationRequest
from server.errors import ContextLengthExceeded, InvalidRequest
from vectors.positions import Phase


def check_request(request: GenerationRequest, info: ModelInfo, num_slots: int) -> None:
    """Raise for what can never be run by a model of `info` with KV for `num_slots` tokens.

    `ContextLengthExceeded`, or `InvalidRequest` for an empty prompt, token ids outside the vocabulary, a capture
    outside the model, and branches that are asked for more than the next token.
    """
    tokens = (*request.prompt, *request.forced)
    if not request.prompt:
        raise InvalidRequest("the prompt is empty", code="empty_prompt", param="prompt")
    most = min(info.max_model_len, num_slots)
    if len(tokens) + request.max_tokens > most:
        raise ContextLengthExceeded(
            f"this model's context is {most} tokens; {len(tokens)} in the prompt and "
            f"{request.max_tokens} to generate are {len(tokens) + request.max_tokens}",
            param="messages",
        )
    named = (
        *tokens,
        *request.score_token_ids,
        *request.sampling.logit_bias,
        *request.sampling.stop_token_ids,
    )
    if min(named) < 0 or max(named) >= info.vocab_size:
        raise InvalidRequest(
            f"a token id is outside the vocabulary of {info.vocab_size}",
            code="invalid_token",
            param="prompt",
        )
    spec = request.capture
    if spec is not None:
        if not set(spec.sites) <= set(info.sites) or not all(0 <= layer < info.num_layers for layer in spec.layers):
            raise InvalidRequest("the capture names a site or layer that the model lacks", code="invalid_capture")
        if not all(-len(tokens) <= position < len(tokens) for position in spec.positions):
            raise InvalidRequest("the capture names a position outside the prompt", code="invalid_capture")

    if request.branches:
        _check_branches(request)


def _check_branches(request: GenerationRequest) -> None:
    is_plain = request.max_tokens == 0 and not request.forced and request.capture is None
    shared = request.plan.fingerprint(Phase.PROMPT)
    if not is_plain or request.logprobs_start is not None or not request.score_token_ids:
        raise InvalidRequest("branches only score the next token", code="invalid_branches", param="branches")
    if any(branch.fingerprint(Phase.PROMPT) != shared for branch in request.branches):
        raise InvalidRequest("a branch steers the tokens that all share", code="invalid_branches", param="branches")
