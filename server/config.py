"""Settings of the server, from one table: the fields of `Settings`.

Each field is declared with its parser, default, unit and help. The command line's flags, the environment's `TILLER_…`
variables and docs/settings.md all come from there. Nothing is read at import: flags and environment are passed to
`from_sources`.
"""

# ruff: noqa: RUF009 - the defaults are rows of the table: immutable, made once

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

DoseLimit: TypeAlias = Literal["refuse", "cap", "warn", "off"]
"""What to do with a scale above a vector's limit: refuse the request, lower the scale, say so, or nothing."""

DOSE_LIMITS: tuple[DoseLimit, ...] = get_args(DoseLimit)


class SettingsRefused(ValueError):
    """A setting has an invalid value; the message names its flag or variable."""


Parser = Callable[[str], Any]
"""Text -> value. Raises `ValueError` with a message "expected …"."""


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table. `default_text` is how the documents show the default."""

    name: str
    parse: Parser
    default: Any
    help: str
    metavar: str
    default_text: str

    @property
    def is_positional(self) -> bool:
        """True for MODEL, which is given without a flag."""
        return self.name == "model"

    @property
    def is_switch(self) -> bool:
        """True for a flag without a value."""
        return self.parse is _switch

    @property
    def flag(self) -> str:
        """`--max-queue`, or `MODEL`."""
        return self.metavar if self.is_positional else "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """`TILLER_MAX_QUEUE`."""
        return "TILLER_" + self.name.upper()


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("expected a value")
    return text.strip()


def _path(text: str) -> Path:
    return Path(_text(text)).expanduser()


def _switch(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected true or false")


def _one_of(*choices: str) -> Parser:
    def parse(text: str) -> str:
        if text.strip().lower() not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return text.strip().lower()

    return parse


def _device(text: str) -> str:
    name = text.strip().lower()
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", name) is None:
        raise ValueError("expected one of auto, cpu, cuda, cuda:N, mps")
    return name


def _whole(smallest: int, largest: int) -> Parser:
    def parse(text: str) -> int:
        number = int(text) if re.fullmatch(r"[+-]?\d{1,12}", text.strip()) else None
        if number is None or not smallest <= number <= largest:
            raise ValueError(f"expected a whole number from {smallest} to {largest}")
        return number

    return parse


def _above_zero(largest: float) -> Parser:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number <= largest:
            raise ValueError(f"expected a number above 0 and at most {largest:g}")
        return number

    return parse


_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def _origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them: in lower case, without a default port, a path or user."""
    found = []
    for part in _text(text).split(","):
        if part.strip() == "*":
            found.append("*")
            continue
        match = _ORIGIN.fullmatch(part.strip().lower())
        if match is None:
            raise ValueError("expected origins such as https://app.example, separated by commas, or *")
        scheme, host, port = match.groups()
        has_port = port is not None and port != _DEFAULT_PORTS.get(scheme)
        found.append(f"{scheme}://{host}:{port}" if has_port else f"{scheme}://{host}")
    if "*" in found and len(found) > 1:
        raise ValueError("expected either * or origins")
    return tuple(found)


def _engine_arguments(text: str) -> tuple[tuple[str, str], ...]:
    """`KEY=VALUE` pairs, separated and quoted as in a shell."""
    pairs = []
    try:
        words = shlex.split(_text(text))
    except ValueError as error:
        raise ValueError(f"expected KEY=VALUE, quoted as in a shell ({str(error).lower()})") from None
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or re.fullmatch(r"[a-z][a-z0-9_-]*", key) is None:
            raise ValueError("expected KEY=VALUE")
        pairs.append((key, value))
    return tuple(pairs)


def _http_url(text: str) -> str:
    url = _text(text)
    if re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url) is None:
        raise ValueError("expected an http:// or https:// URL without user, query and fragment")
    return url.rstrip("/")


def _option(default: Any, parse: Parser, metavar: str, help: str, default_text: str | None = None) -> Any:
    shown = default_text if default_text is not None else str(default)
    metadata = {"parse": parse, "metavar": metavar, "help": help, "default_text": shown}
    return dataclasses.field(default=default, metadata=metadata)


_DATA_HOME = "~/.local/share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one server runs. Each field is a row of the table: default, parser, unit, help."""

    model: str | None = _option(
        None, _text, "MODEL", "folder or hub id of the model to serve", "the embedded demo model"
    )
    host: str = _option(
        "127.0.0.1", _text, "ADDRESS", "address to listen on; anything but loopback needs keys or --insecure"
    )
    port: int = _option(8000, _whole(0, 65535), "PORT", "port to listen on; 0 picks a free one and prints it")
    data_dir: Path = _option(
        Path(_DATA_HOME) / "tiller",
        _path,
        "FOLDER",
        "folder for vectors and other state",
        "$XDG_DATA_HOME/tiller, else ~/.local/share/tiller",
    )
    device: str = _option("auto", _device, "DEVICE", "device to run on: auto, cpu, cuda, cuda:N or mps")
    dtype: str = _option(
        "auto",
        _one_of("auto", "float32", "bfloat16", "float16"),
        "DTYPE",
        "precision: auto (as stored, or float32 on a CPU that is faster with it), float32, bfloat16 or float16",
    )
    kernels: str = _option(
        "auto",
        _one_of("auto", "compiled", "torch"),
        "KERNELS",
        "who computes on a CPU: auto (what is faster), compiled (in float32; needs a C compiler) or torch",
    )
    engine: str = _option(
        "torch",
        _one_of("torch", "vllm"),
        "ENGINE",
        "what runs the model: torch (tiller's own engine) or vllm (see the docs on engines; needs the extra vllm)",
    )
    engine_arg: tuple[tuple[str, str], ...] = _option(
        (),
        _engine_arguments,
        "KEY=VALUE",
        "option of vLLM by its own name, or several separated by spaces; those that would break steering are refused",
        "none",
    )
    revision: str | None = _option(
        None, _text, "REVISION", "branch, tag or commit; for hub models only", "the main branch"
    )
    adapter: str | None = _option(
        None, _text, "ADAPTER", "folder or hub id of a PEFT LoRA adapter, merged into the model", "none"
    )
    served_model_name: str | None = _option(
        None, _text, "NAME", "the model's id in the API", "the hub id or the folder's name"
    )
    chat_template: Path | None = _option(
        None, _path, "FILE", "Jinja chat template to use instead of the model's", "the model's own"
    )
    max_model_len: int | None = _option(
        None, _whole(1, 100_000_000), "TOKENS", "maximum length of prompt and answer together", "the model's own limit"
    )
    max_running: int = _option(64, _whole(1, 4096), "COUNT", "maximum number of sequences running at a time")
    kv_cache_gib: float | None = _option(
        None,
        _above_zero(65536),
        "GIB",
        "memory for the KV cache",
        "what --max-running needs, at most half of the free memory",
    )
    max_batch_tokens: int = _option(512, _whole(1, 1_000_000), "TOKENS", "maximum number of tokens computed per step")
    background_share: float = _option(
        0.05,
        _above_zero(1),
        "SHARE",
        "share of the steps beside live requests that training gets at least",
    )
    dose_limit: DoseLimit = _option(
        "warn",
        _one_of(*DOSE_LIMITS),
        "ACTION",
        "what to do with a request whose scale is above its vector's limit: refuse it, cap the scale, warn in the "
        "answer, or off",
    )
    inline_directions: bool = _option(
        False,
        _switch,
        "",
        "let use keys bring directions in their requests too, instead of naming vectors of the registry; manage keys "
        "may, and without keys everyone",
        "off",
    )
    probe_metrics: bool = _option(
        False,
        _switch,
        "",
        "measure the scores of probes, in a histogram for each vector and layer that is read (the first 100)",
        "off",
    )
    max_upload_mib: float = _option(64.0, _above_zero(65536), "MIB", "maximum size of an uploaded file", "64")
    max_queue: int = _option(1024, _whole(0, 1_000_000), "COUNT", "maximum number of waiting requests; others get 429")
    max_stored_responses: int = _option(
        1000,
        _whole(0, 100_000),
        "COUNT",
        "maximum number of responses kept for requests with store: true; the oldest are deleted first, 0 keeps none",
    )
    api_key_file: Path | None = _option(
        None, _path, "FILE", "file with API keys, one use:KEY or manage:KEY per line", "none"
    )
    insecure: bool = _option(
        False, _switch, "", "serve any address without keys; anyone who can reach it can do anything", "off"
    )
    cors_origin: tuple[str, ...] = _option(
        (),
        _origins,
        "ORIGIN",
        "origins of web pages that may call this server, comma-separated; * (any page) needs keys or --insecure",
        "none",
    )
    rate_limit: int | None = _option(
        None,
        _whole(1, 1_000_000),
        "COUNT",
        "maximum requests per minute for each key (without keys: for each client address); others get 429",
        "no limit",
    )
    token_limit: int | None = _option(
        None,
        _whole(1, 1_000_000_000),
        "COUNT",
        "maximum tokens per minute, of prompts and answers, for each key (without keys: for each client address); "
        "others get 429",
        "no limit",
    )
    request_timeout: float | None = _option(
        None, _above_zero(86400), "SECONDS", "time limit for a request, which is then aborted with 504", "no limit"
    )
    body_timeout: float = _option(
        30.0,
        _above_zero(86400),
        "SECONDS",
        "time limit for receiving a request's head, and then for its body, plus 1 s for every 8 KiB of body",
        "30",
    )
    send_timeout: float = _option(
        300.0,
        _above_zero(86400),
        "SECONDS",
        "a client that reads nothing of its answer for this long is disconnected",
        "300",
    )
    drain_timeout: float = _option(
        40.0,
        _above_zero(86400),
        "SECONDS",
        "time in which the server ends once it is told to; running requests get all but the last 10 s, at least half",
        "40",
    )
    step_timeout: float = _option(
        60.0,
        _above_zero(86400),
        "SECONDS",
        "a step that takes half of this makes /ready answer 503, one that takes all of it /health too",
        "60",
    )
    on_failure: str = _option(
        "exit",
        _one_of("exit", "stay"),
        "ACTION",
        "what to do when /health answers 503: exit (with status 70, for a supervisor to start it again) or stay",
    )
    grammar_seconds: float = _option(
        10.0,
        _above_zero(3600),
        "SECONDS",
        "processor time for compiling one schema or the schemas of one request's tools; others get 400",
        "10",
    )
    grammar_mib: int = _option(
        512, _whole(16, 1 << 20), "MIB", "memory for compiling one schema or the schemas of one request's tools"
    )
    stream_keep_alive: float = _option(
        15.0,
        _above_zero(86400),
        "SECONDS",
        "a stream without events for this long gets a comment to keep it alive",
        "15",
    )
    otel_endpoint: str | None = _option(
        None,
        _http_url,
        "URL",
        "OTLP collector for traces, e.g. http://127.0.0.1:4318; needs the extra otel",
        "$OTEL_EXPORTER_OTLP_ENDPOINT, else none",
    )
    no_page: bool = _option(False, _switch, "", "do not serve the playground at /", "off")
    log_level: str = _option(
        "info",
        _one_of("debug", "info", "warning", "error"),
        "LEVEL",
        "lowest level to log: debug, info, warning or error",
    )
    log_json: bool = _option(False, _switch, "", "log one JSON object per line", "off")

    @classmethod
    def from_sources(cls, flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Self:
        """A flag overrides its variable, a variable the default; None and empty variables count as not given.

        `flags` maps field names to texts (a switch is given as "true"). Raises `SettingsRefused`.
        """
        values: dict[str, Any] = {}
        for option in options():
            given = flags.get(option.name)
            source = option.flag
            if given is None:
                given, source = environ.get(option.variable) or None, option.variable
            if given is not None:
                try:
                    values[option.name] = option.parse(given)
                except ValueError as error:
                    raise SettingsRefused(f"{source}: {error}, got {given[:80]!r}") from None
        values.setdefault("data_dir", _default_data_dir(environ))
        return cls(**values)


def options() -> Iterator[Option]:
    """The table, in the order of the documents."""
    for field in dataclasses.fields(Settings):
        yield Option(name=field.name, default=field.default, **field.metadata)


def _default_data_dir(environ: Mapping[str, str]) -> Path:
    given = Path(environ.get("XDG_DATA_HOME") or _DATA_HOME)
    absolute = given if given.is_absolute() else Path(_DATA_HOME)  # the XDG specification: ignore relative paths
    return (absolute / "tiller").expanduser()


_INTRODUCTION = """\
# Settings

Every setting of `tiller serve` is both a flag and an environment variable. A flag overrides its variable, and a
variable overrides the default. An empty variable counts as not given, and a `TILLER_…` variable that is not on this
page causes a warning. This page is generated from `server/config.py` (`python -m server.config > docs/settings.md`); a
test keeps it up to date.

| flag | variable | default | meaning |
|---|---|---|---|
"""

_KEYS = """
## API keys

Keys come from the environment, so that they do not appear in process lists, or from `--api-key-file`; both sources
are combined.

| variable | meaning |
|---|---|
| `TILLER_API_KEYS` | comma-separated keys that may use the model and read the registry of vectors |
| `TILLER_MANAGE_KEYS` | comma-separated keys that may also change the registry, store and read files, and train |

A key file has one key per line, `use:KEY` or `manage:KEY`; empty lines and lines that begin with `#` are skipped. A
file that other users can write to is rejected. Without keys, anyone who can reach the server can do anything. It
therefore listens on loopback addresses only, and rejects requests for other host names or from web pages of other
origins (403 `cross_origin`), unless `--insecure` is set.

The clients, such as `tiller chat` and `tiller vectors`, read their key from `TILLER_API_KEY`, which does not set a key
on a server. `tiller evaluate --judge` reads the key for its judge from `TILLER_JUDGE_KEY`.
"""


def settings_markdown() -> str:
    """The content of docs/settings.md."""
    rows = []
    for option in options():
        shown = option.flag if option.is_positional or option.is_switch else f"{option.flag} {option.metavar}"
        rows.append(f"| `{shown}` | `{option.variable}` | {option.default_text} | {option.help} |")
    return _INTRODUCTION + "\n".join(rows) + "\n" + _KEYS


if __name__ == "__main__":
    print(settings_markdown(), end="")
