"""A model that repeats what it was told, token by token, through the engine's own constrained decoding.

So tests choose what an answer says and everything around it is real. Where the request has a grammar of its own, the
text must obey it and the model goes on as the grammar lets it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.grammar import Grammar, GrammarState
from server.engine.model import LoadedModel, prepare_model
from server.engine.request import EngineRequest, Generate, OutputSink
from tests.server.api.serving import MODEL, Server, byte_tokenizer, serving, tiny_module

START, END = 1, 2
LONG_CONTEXT = 4096


@dataclass(frozen=True)
class Dictation:
    """The grammar of a text that goes on with what `then` allows after it; None: with nothing."""

    token_ids: tuple[int, ...]
    then: Grammar | None

    def start(self) -> DictationState:
        """The state before the first token."""
        return DictationState(self.token_ids, None if self.then is None else self.then.start())


@dataclass
class DictationState:
    """How far a response is."""

    token_ids: tuple[int, ...]
    then: GrammarState | None
    position: int = 0

    @property
    def is_complete(self) -> bool:
        """True when the grammar that goes on says so."""
        return self.then is not None and self.position >= len(self.token_ids) and self.then.is_complete

    def fill_mask(self, words: Tensor) -> None:
        """Allow the next token of the text, then what the grammar that goes on allows."""
        if self.position < len(self.token_ids):
            _allow(words, self.token_ids[self.position])
        elif self.then is None:
            _allow(words, END)
        else:
            self.then.fill_mask(words)

    def accept(self, token_id: int) -> None:
        """Advance by one token."""
        self.position += 1
        if self.then is not None:
            self.then.accept(token_id)


class RepeatingEngine(BatchingEngine):
    """Answers with what the last user said."""

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """As the engine's own, with the last user message as how the answer begins."""
        if isinstance(request.work, Generate):
            dictation = Dictation(last_user_message(request.prompt), request.work.grammar)
            request = replace(request, work=replace(request.work, grammar=dictation))
        super().submit(request, sink)


def _allow(words: Tensor, token_id: int) -> None:
    words[token_id // 32] |= 1 << (token_id % 32) if token_id % 32 < 31 else -(2**31)


def last_user_message(prompt: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens that a ChatML prompt's last user said."""
    head = (START, *byte_tokenizer(None).encode("user\n", add_special_tokens=False))
    starts = [at + len(head) for at in range(len(prompt)) if prompt[at : at + len(head)] == head]
    return prompt[starts[-1] : prompt.index(END, starts[-1])] if starts else ()


def long_model(vocab_size: int, num_layers: int) -> LoadedModel:
    """The tiny model with room for tools in its prompts, and for more tokens."""
    module = tiny_module(num_layers)
    if vocab_size > module.config.vocab_size:
        module.resize_token_embeddings(vocab_size, mean_resizing=False)
    module.config.max_position_embeddings = LONG_CONTEXT
    return prepare_model(module, model_id=MODEL)


@contextlib.contextmanager
def serving_chats(
    folder: Path, chat_template: str, *, repeats: bool = True, tokenizer: Any = None, num_layers: int = 1
) -> Iterator[Server]:
    """The tiny model with a long context; with `repeats` it says what it is told.

    One block is enough for that, and a third of the work of three.
    """
    tokenizer = tokenizer or byte_tokenizer(chat_template)
    with serving(
        folder,
        tokenizer=tokenizer,
        model=long_model(len(tokenizer), num_layers),
        engine_class=RepeatingEngine if repeats else BatchingEngine,
        engine_settings=EngineSettings(num_pages=3000, page_size=8, max_running=40, max_batch_tokens=512),
    ) as server:
        yield server


def together(ask: Callable[[Any], Any], what: Iterable[Any]) -> list[Any]:
    """The answer to each of `what`, all asked at once: they share the engine's steps, which are what takes time."""
    asked = list(what)
    with ThreadPoolExecutor(len(asked)) as threads:
        return list(threads.map(ask, asked))
