"""Who may call: the tokens that clients show, by name, and a file of them that may change while the server runs."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from handmesh.errors import ConfigError

logger = logging.getLogger(__name__)

# A token shorter than this can be guessed in a day at the rate that one process answers.
MIN_TOKEN_LENGTH: Final = 16
UNNAMED: Final = "token"  # the name of one that was given none

_LOOK_SECONDS: Final = 1.0  # between looks at whether the file has changed


class Tokens:
    """The tokens in force. For the event loop."""

    def __init__(self, token: SecretStr | None = None, file: Path | None = None) -> None:
        """One token, or a file of them (`read_tokens`), or none. Raises ConfigError for a file that is none."""
        self._file = file
        self._known: list[tuple[bytes, str]] = []
        if token is not None:
            self._known = [(token.get_secret_value().encode(), UNNAMED)]
        if file is not None:
            self._seen, self._known = _state_of(file), read_tokens(file)
        self._looked = time.monotonic()

    @property
    def required(self) -> bool:
        """Whether clients have to show one."""
        return bool(self._known)

    @property
    def names(self) -> set[str]:
        return {name for _, name in self._known}

    def name_of(self, shown: Iterable[bytes]) -> str | None:
        """Whose the first valid one is; None where none is valid. Takes the same time for each."""
        self._look()
        found = [name for one in shown for token, name in self._known if hmac.compare_digest(one, token)]
        return found[0] if found else None

    def _look(self) -> None:
        """A file that became unreadable, or no file of tokens, changes nothing but the log."""
        if self._file is None or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        state = _state_of(self._file)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._known = read_tokens(self._file)
        except ConfigError as error:
            logger.error("the tokens stay as they were: %s", error)
        else:
            logger.info("new tokens: %s", ", ".join(sorted(self.names)))


def read_tokens(file: Path) -> list[tuple[bytes, str]]:
    """A line for each: `name: token`, or the token alone. Empty lines and those that begin with # are left out.

    A name may have several, so that a new one is in force before the old one is taken out. Raises ConfigError.
    """
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The token file {file} cannot be read as text: {error}.") from None
    found = []
    for number, line in enumerate(lines, 1):
        name, colon, token = line.strip().rpartition(":")
        if line.strip() and not line.strip().startswith("#"):
            where = f"{file}, line {number}"
            if colon and not (name.strip() and token.strip()):
                raise ConfigError(
                    f"{where} has no {'token after' if name else 'name before'} its colon. Wanted: name: token."
                )
            found.append((checked_token(token, where).encode(), name.strip() or UNNAMED))
    if not found:
        raise ConfigError(f"The token file {file} has no token. Make one with: openssl rand -hex 24")
    return found


def checked_token(token: str, where: str = "The token") -> str:
    """Without spaces around it. Raises ConfigError for what is easily guessed, or cannot be sent in a header."""
    token = token.strip()
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{where} has {len(token)} characters: wanted at least {MIN_TOKEN_LENGTH} of ASCII without spaces. "
            "Make one with: openssl rand -hex 24"
        )
    return token


def _state_of(file: Path) -> tuple[int, int, int] | None:
    """Changes when the file does; also when a link to it is turned, as for mounted secrets."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
