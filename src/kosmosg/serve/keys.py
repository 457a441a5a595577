"""API keys: who may ask, compared in constant time."""

import hashlib
import hmac
import ipaddress
from pathlib import Path

from kosmosg.errors import ConfigError

MIN_CHARACTERS = 16
MAX_KEYS = 1000


class Keys:
    """The keys of a file, of which only sums are kept.

    Args:
        keys: In the file's order; none: everybody may ask.
    """

    def __init__(self, keys: list[str]) -> None:
        self._sums = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._sums)

    def owner(self, authorization: str | None) -> str | None:
        """Return whose key a header `Authorization` holds, as `key-1`; None: nobody's.

        Every key is compared, whichever is right.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            key = ""
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for number, one in enumerate(self._sums, start=1):
            if hmac.compare_digest(one, given):
                found = f"key-{number}"
        return found


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may come to mean anything
        return False


def read_keys(path: Path) -> Keys:
    """Return the keys of a file, one a line; empty lines and those that begin with # are none.

    Raises:
        ConfigError: If it cannot be read, or a key is too short to be one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"cannot read the keys in {path}: {reason}; check the path") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ConfigError(f"{path} has {len(keys)} keys; write 1 to {MAX_KEYS}, one a line")
    for number, key in enumerate(keys, start=1):
        if len(key) < MIN_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"key {number} in {path} is no key; write at least {MIN_CHARACTERS} letters and "
                "digits, such as `openssl rand -hex 24` gives"
            )
    return Keys(keys)
