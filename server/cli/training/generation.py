"""Answers of a running server to open-ended prompts, unsteered and steered, and how likely the unsteered model finds
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.cli.client.connection import ServerClient, not_understood
from server.cli.client.parallel import in_parallel
from server.cli.errors import CommandFailed
from vectors.behaviour.answers import Answer, AnswerPair, seed_of_sample
from vectors.behaviour.prompts import OpenPrompt
from vectors.training.progress import Progress, Report

_ENTRY = {"vector": str, "revision": str, "scale": int | float, "layers": [int]}
_CHAT = {
    "choices": [{"message": {"content": str | None}, "token_ids": [int], "finish_reason": str}],
    "prompt_token_ids": [int],
    "steering": [_ENTRY],
}
_COMPLETION = {
    "choices": [{"text": str, "token_ids": [int], "prompt_token_ids": [int], "finish_reason": str}],
    "steering": [_ENTRY],
}
_SCORED = {"choices": [{"logprobs": {"token_logprobs": [int | float | None]}}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How prompts are answered: once greedily, and `samples` times sampled, each unsteered and with `entry`.

    `entry` is an entry of a request's `steering`; `is_raw`: prompts are continued as text, not answered in a chat.
    """

    model: str
    entry: Mapping[str, Any]
    samples: int
    temperature: float
    max_tokens: int
    seed: int
    is_raw: bool


@dataclass(frozen=True, slots=True)
class Generated:
    """The pairs in the order of the prompts, and the steering that the server applied."""

    pairs: tuple[AnswerPair, ...]
    steering: tuple[Mapping[str, Any], ...]


def answer_prompts(
    client: ServerClient, how: Generation, prompts: Sequence[OpenPrompt], name: str, report: Report
) -> Generated:
    """Have the server answer `prompts`, read from the file `name`. Raises `CommandFailed`, naming the prompt's line."""
    asked = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(how.samples + 1)]
    applied: list[Mapping[str, Any]] = []

    def answer(one: tuple[int, int]) -> AnswerPair:
        prompt, sample = one
        seed = None if sample == 0 else seed_of_sample(how.seed, prompt, sample)
        sampling = {"temperature": 0} if seed is None else {"temperature": how.temperature, "seed": seed}
        try:
            unsteered, _ = _answer(client, how, prompts[prompt], [], sampling)
            steered, plan = _answer(client, how, prompts[prompt], [how.entry], sampling)
        except CommandFailed as error:
            raise CommandFailed(f"{name}, line {prompts[prompt].line}: {error}") from None
        if one == asked[0]:
            applied.extend(plan)
        return AnswerPair(prompt, "greedy" if seed is None else "sampled", seed, unsteered, steered)

    pairs = in_parallel(answer, asked, lambda done: report(Progress("answering", done, len(asked))))
    return Generated(tuple(pairs), tuple(applied))


def _answer(
    client: ServerClient, how: Generation, prompt: OpenPrompt, steering: Sequence[Mapping[str, Any]], sampling: Any
) -> tuple[Answer, list[dict[str, Any]]]:
    """One answer, and the steering that was applied to it."""
    body = {
        "model": how.model,
        "steering": list(steering),
        "max_tokens": how.max_tokens,
        "return_token_ids": True,
        **sampling,
    }
    if how.is_raw:
        found = client.read("POST", "/v1/completions", _COMPLETION, json=body | {"prompt": prompt.messages[0].content})
        choice = _only(found["choices"])
        text, prompt_ids = choice["text"], choice["prompt_token_ids"]
    else:
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        found = client.read("POST", "/v1/chat/completions", _CHAT, json=body | {"messages": messages})
        choice = _only(found["choices"])
        text, prompt_ids = choice["message"]["content"] or "", found["prompt_token_ids"]
    token_ids = tuple(choice["token_ids"])
    logprobs = _logprobs(client, how.model, prompt_ids, token_ids)
    return Answer(text, token_ids, logprobs, choice["finish_reason"] == "length"), found["steering"]


def _logprobs(
    client: ServerClient, model: str, prompt_ids: Sequence[int], token_ids: Sequence[int]
) -> tuple[float, ...]:
    """The log-probability of each of `token_ids` after the prompt under the unsteered model."""
    if not token_ids:
        return ()
    body = {
        "model": model,
        "steering": [],
        "prompt": [*prompt_ids, *token_ids],
        "max_tokens": 0,
        "echo": True,
        "logprobs": 0,
    }
    found = client.read("POST", "/v1/completions", _SCORED, json=body)
    echoed = _only(found["choices"])["logprobs"]["token_logprobs"]
    # the very first token of all follows nothing, so it has none
    own = [each for each in echoed[-len(token_ids) :] if each is not None]
    if len(echoed) != len(prompt_ids) + len(token_ids):
        raise not_understood()
    return tuple(map(float, own))


def _only(choices: Sequence[Any]) -> Any:
    if len(choices) != 1:
        raise not_understood()
    return choices[0]
