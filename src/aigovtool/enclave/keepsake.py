"""
The newest statement that the custodian gave, kept for its own sake: a custodian whose ledger was
put back from a copy is shown by it that it once knew more.

Rule 1: nothing here decides anything for the enclave. What the disk gives back is the host's to
        change; it is passed on only when the custodian's signature holds.
Rule 2: it is written now and then, and when a session ends; a disk that cannot be written is a
        warning.
Rule 3: it holds what any consumer is told, and nothing of inputs or outputs.
"""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import fingerprint
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.wire.codec import Signed, decode, encode, open_signed
from aigovtool.wire.enrolment import SessionStatement

MAX_FILE_BYTES = 64 << 10

_log = logging.getLogger(__name__)


class Keepsake:
    """
    Keeps the newest statement, in memory and in *folder* if there is one.

    Args:
        custodian_key: 32 bytes; statements of others are not kept.
    """

    def __init__(self, folder: Path | None, *, custodian_key: bytes) -> None:
        self._path = None if folder is None else folder / f"{fingerprint(custodian_key)}.statement"
        self._custodian_key = custodian_key
        self._warned = False
        self.newest = self._read()

    def keep(self, statement: Signed) -> None:
        """Keep a statement whose signature was checked."""
        if statement != self.newest:
            self.newest = statement
            if self._path is not None:
                self._write(self._path, statement)

    def _read(self) -> Signed | None:
        if self._path is None:
            return None
        with suppress(OSError, MalformedError, VerificationError):
            with self._path.open("rb") as file:
                signed = decode(file.read(MAX_FILE_BYTES), Signed)
            open_signed(
                signed,
                SessionStatement,
                public_key=self._custodian_key,
                label=Label.SESSION_STATEMENT,
            )
            return signed
        return None

    def _write(self, path: Path, statement: Signed) -> None:
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(encode(statement))
            new.replace(path)
        except OSError as error:
            new.unlink(missing_ok=True)
            if not self._warned:
                self._warned = True
                _log.warning("cannot keep the custodian's statement: %s", error.strerror)
