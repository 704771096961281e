"""The start-up banner: address, model, memory, vectors, keys, and a curl command to paste."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from server.engine.protocol import EngineStats, ModelInfo


@dataclass(frozen=True, slots=True)
class Readiness:
    """The content of the banner. `steers_with` is a vector that fits the model, if the registry has one."""

    url: str
    model: ModelInfo
    stats: EngineStats
    is_demo: bool
    has_chat_template: bool
    num_vectors: int
    steers_with: str | None
    needs_key: bool
    is_insecure: bool

    def lines(self) -> list[str]:
        """The banner."""
        model, paging = self.model, self.stats.paging
        lines = [
            f"tiller is ready at {self.url}",
            "",
            f"  model    {model.model_id}: {model.architecture}, {_count(model.num_parameters)} parameters, "
            f"{_size(model.num_bytes)} in {self._precision()} on {model.device}, context {model.max_model_len} tokens",
        ]
        if self.is_demo:
            lines += [
                "           the embedded demo: a toy that shows steering; it knows little and is often wrong.",
                "           Run tiller serve MODEL for a real model.",
            ]
        if paging is not None:
            farthest, *windows = paging.pools
            num_tokens = farthest.num_pages * paging.page_size
            lines.append(f"  memory   {farthest.num_pages} KV pages of {paging.page_size} tokens = {num_tokens} tokens")
            for pool in windows:
                lines[-1] += f", and {pool.num_pages} pages for layers that see less of the past"
        lines += [
            f"  vectors  {self._vectors()}",
            f"  keys     {self._keys()}",
            f"  API      described at {self.url}/docs",
            "",
            "Try:",
            "",
            *(f"  {line}" for line in self.curl().splitlines()),
            "",
            "Ctrl-C stops the server after running requests have finished.",
        ]
        return lines

    def fields(self) -> dict[str, Any]:
        """The same for a JSON log."""
        model, paging = self.model, self.stats.paging
        memory = {}
        if paging is not None:
            farthest = paging.pools[0]
            memory = {"kv_pages": farthest.num_pages, "kv_tokens": farthest.num_pages * paging.page_size}
        return {
            "url": self.url,
            "model": model.model_id,
            "architecture": model.architecture,
            "num_parameters": model.num_parameters,
            "num_bytes": model.num_bytes,
            "weights_dtype": model.weights_dtype,
            "dtype": model.dtype,
            "device": model.device,
            "max_model_len": model.max_model_len,
            **memory,
            "num_vectors": self.num_vectors,
            "needs_key": self.needs_key,
            "is_demo": self.is_demo,
        }

    def curl(self) -> str:
        """A command that works as shown (with a key in `TILLER_API_KEY`, if keys are required)."""
        body: dict[str, Any] = {"model": self.model.model_id}
        if self.has_chat_template:
            path = "/v1/chat/completions"
            body["messages"] = [{"role": "user", "content": "Do you like music?"}]
        else:
            path = "/v1/completions"
            body |= {"prompt": "Once upon a time", "max_tokens": min(40, max(1, self.model.max_model_len // 2))}
        if self.steers_with is not None:
            body["steering"] = [{"vector": self.steers_with}]
        parts = [f"curl {self.url}{path}", "-H 'Content-Type: application/json'"]
        if self.needs_key:
            parts.append('-H "Authorization: Bearer $TILLER_API_KEY"')
        parts.append(f"-d {shlex.quote(json.dumps(body))}")
        return " \\\n  ".join(parts)

    def _precision(self) -> str:
        stored, computed = self.model.weights_dtype, self.model.dtype
        return stored if stored == computed else f"{stored}, computed in {computed}"

    def _vectors(self) -> str:
        if self.num_vectors == 0:
            return "none yet; add one with: tiller vectors put NAME FILE"
        fitting = "" if self.steers_with is not None else ", none of them for this model"
        return f"{self.num_vectors} in the registry{fitting}"

    def _keys(self) -> str:
        if self.needs_key:
            return "required: send one as 'Authorization: Bearer KEY'"
        if self.is_insecure:
            return "none (--insecure): anyone who can reach this address can do anything"
        return "none: only this machine can reach the server"


def _count(number: int) -> str:
    for divisor, unit in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= divisor:
            return f"{number / divisor:.3g} {unit}"
    return str(number)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
