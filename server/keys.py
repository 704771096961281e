"""API keys and what each of them may do.

Keys are kept as SHA-256 digests only, so that no dump, log or repr can show one.
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
"""Where clients find the key that they send; the server does not read it."""
JUDGE_VARIABLE = "TILLER_JUDGE_KEY"
"""Where `tiller evaluate` finds the key for its judge, which need not be a tiller server."""


class KeysRefused(ValueError):
    """Keys cannot be read, or are missing where they are needed. The message never contains a key."""


class Role(enum.Enum):
    """What a key allows. Each member carries one sentence."""

    USE = "It may use the model and read the registry of vectors."
    MANAGE = "It may also change the registry, and store, read and train on labelled data."


class ApiKeys:
    """The keys that a server accepts. Without any, the server is open to everybody who can reach it."""

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
        """The role of `key`, or None for an unknown one; takes the same time whichever key matches, if any."""
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
    if insecure or not keys.is_open or is_loopback(host):
        return
    raise KeysRefused(
        f"--host {host} is reachable from other machines, but no API keys are set; set {USE_VARIABLE} or "
        f"{MANAGE_VARIABLE}, use --api-key-file, listen on 127.0.0.1, or accept the risk with --insecure"
    )


def check_origins(origins: Collection[str], keys: ApiKeys, insecure: bool) -> None:
    """Raise `KeysRefused` when every web page may use a server without API keys."""
    if "*" in origins and keys.is_open and not insecure:
        raise KeysRefused(
            f"--cors-origin * lets every web page use a server without API keys; list origins, set {USE_VARIABLE} or "
            f"{MANAGE_VARIABLE}, use --api-key-file, or accept the risk with --insecure"
        )


def is_loopback(host: str) -> bool:
    """True for a name or an address, IPv6 without brackets, by which only this machine can be reached."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def digest_of(key: str) -> bytes:
    """The SHA-256 of a key, the only form in which keys are kept."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def checked_key(key: str, source: str) -> str:
    """`key`, if an Authorization header can carry it; else raises `KeysRefused`, which names only `source`."""
    if not key or not all("!" <= character <= "~" for character in key):
        raise KeysRefused(f"{source} must be printable ASCII without spaces, and not empty")
    return key


def _split(environ: Mapping[str, str], variable: str) -> list[str]:
    text = environ.get(variable, "")
    if not text:
        return []
    keys = [part.strip() for part in text.split(",") if part.strip()]
    if not keys:
        raise KeysRefused(f"{variable} is set but contains no key")
    return [checked_key(key, f"a key of {variable}") for key in keys]


def _read(file: Path) -> list[tuple[Role, str]]:
    try:
        with file.open(encoding="utf-8") as opened:
            mode = file.stat().st_mode
            lines = opened.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise KeysRefused(f"cannot read --api-key-file {file}: {reason}") from None
    if mode & stat.S_IWOTH:
        raise KeysRefused(f"--api-key-file {file} is writable by every user of this machine; run chmod o-w on it")
    if mode & stat.S_IROTH:
        _log.warning("%s is readable by every user of this machine; run chmod 600 on it", file)
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
        raise KeysRefused(f"--api-key-file {file} contains no key")
    return keys
