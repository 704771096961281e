"""API keys and what each may do.

Keys are kept as SHA-256 digests only, so that no dump, log or repr can show one. It does not know HTTP; whoever
asks has the text of the key already.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import ipaddress
import logging
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

_log = logging.getLogger(__name__)

USE_VARIABLE = "TILLER_API_KEYS"
MANAGE_VARIABLE = "TILLER_MANAGE_KEYS"
CLIENT_VARIABLE = "TILLER_API_KEY"
"""Where the clients find the key that they send; it gives a server none."""


class KeysRefused(ValueError):
    """Keys cannot be read, or are missing where they are needed. The message never holds a key."""


class Role(enum.Enum):
    """What a key allows. Each member carries one sentence."""

    USE = "It may use the model and read the registry."
    MANAGE = "It may also change the registry."


class ApiKeys:
    """The keys that a server knows. Without any, the server is open to whoever reaches it."""

    def __init__(self, *, use: Iterable[str] = (), manage: Iterable[str] = ()) -> None:
        # a key of both roles is a manage key, so manage comes last and wins in `role_of`
        self._digests = tuple(
            (digest_of(checked_key(key, f"a {role.name.lower()} key")), role)
            for role, keys in ((Role.USE, use), (Role.MANAGE, manage))
            for key in keys
        )

    @classmethod
    def from_sources(cls, environ: Mapping[str, str], file: Path | None = None) -> ApiKeys:
        """The keys of `TILLER_API_KEYS` and `TILLER_MANAGE_KEYS` and of `file`. Raises `KeysRefused`."""
        keys: dict[Role, list[str]] = {
            Role.USE: _split(environ, USE_VARIABLE),
            Role.MANAGE: _split(environ, MANAGE_VARIABLE),
        }
        if file is not None:
            for role, key in _read(file):
                keys[role].append(key)
        return cls(use=keys[Role.USE], manage=keys[Role.MANAGE])

    @property
    def is_open(self) -> bool:
        """True when there are no keys."""
        return not self._digests

    def role_of(self, key: str) -> Role | None:
        """The role of `key`, or None for an unknown one; takes the same time whichever key fits, if any."""
        digest = digest_of(key)
        found: Role | None = None
        for known, role in self._digests:
            if hmac.compare_digest(known, digest):
                found = role
        return found

    def __repr__(self) -> str:
        return f"ApiKeys({len(self._digests)} keys)"


def check_exposure(host: str, keys: ApiKeys, insecure: bool) -> None:
    """Raise `KeysRefused` when `host` is reachable from other machines while there are no keys."""
    if insecure or not keys.is_open or _is_loopback(host):
        return
    raise KeysRefused(
        f"--host {host} is reachable from other machines and no API keys are set: set {USE_VARIABLE} or "
        f"{MANAGE_VARIABLE}, give --api-key-file, listen on 127.0.0.1, or accept the risk with --insecure"
    )


def check_origins(origins: Collection[str], keys: ApiKeys, insecure: bool) -> None:
    """Raise `KeysRefused` when any web page at all may use a server that asks for no key."""
    if "*" in origins and keys.is_open and not insecure:
        raise KeysRefused(
            f"--cors-origin * lets every web page use a server without API keys: name the pages, set {USE_VARIABLE} or "
            f"{MANAGE_VARIABLE}, give --api-key-file, or accept the risk with --insecure"
        )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def digest_of(key: str) -> bytes:
    """SHA-256 of a key: all that is ever kept of one."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def checked_key(key: str, source: str) -> str:
    """`key`, if it can travel in an Authorization header; else `KeysRefused`, which names `source` only."""
    if not key or not all("!" <= character <= "~" for character in key):
        raise KeysRefused(f"{source} is empty or has spaces or characters other than printable ASCII")
    return key


def _split(environ: Mapping[str, str], variable: str) -> list[str]:
    text = environ.get(variable, "")
    if not text:
        return []
    keys = [part.strip() for part in text.split(",") if part.strip()]
    if not keys:
        raise KeysRefused(f"{variable} is set and holds no key")
    return [checked_key(key, f"a key of {variable}") for key in keys]


def _read(file: Path) -> list[tuple[Role, str]]:
    try:
        with file.open(encoding="utf-8") as opened:
            mode = file.stat().st_mode
            lines = opened.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise KeysRefused(f"--api-key-file {file} cannot be read: {reason}") from None
    if mode & stat.S_IWOTH:
        raise KeysRefused(f"--api-key-file {file}: anyone on this machine may write to it; chmod o-w it first")
    if mode & stat.S_IROTH:
        _log.warning("%s can be read by anyone on this machine; chmod 600 it", file)
    keys = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        role_name, separator, key = line.strip().partition(":")
        if not separator or role_name.strip().lower() not in ("use", "manage"):
            raise KeysRefused(f"--api-key-file {file}, line {number}: expected use:KEY or manage:KEY")
        key = checked_key(key.strip(), f"--api-key-file {file}, line {number}: the key")
        keys.append((Role[role_name.strip().upper()], key))
    if not keys:
        raise KeysRefused(f"--api-key-file {file} holds no key")
    return keys
