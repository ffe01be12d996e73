"""
The receipts that a consumer keeps: small files, appended to, never changed.

    DIR/<loan>/<consumer>.receipts        a receipt a line, as it came in its header
    DIR/<loan>/sessions/<session>.json    what makes them believable later (`KeptSession`), once

Rule 1: nothing of an input or output is in here, and only its owner can read it (0700, 0600).
Rule 2: any number of processes append to one file: each line is written whole, under a lock.
Rule 3: a crash leaves at most one torn line, which the next line does not join. The death of the
        process loses nothing that was kept, that of the machine at most `SYNC_S` seconds of it.
Rule 4: a session's document is on the disk before the first of its receipts.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from aigovtool.attestation.policy import Policy, write_policy
from aigovtool.client.receipts import VerifiedReceipt
from aigovtool.errors import (
    AIGovToolError,
    ConfigurationError,
    MalformedError,
    UnavailableError,
)
from aigovtool.ids import ConsumerId, LoanId, SessionId
from aigovtool.proof.receipts import KeptReceipt, KeptSession
from aigovtool.wire.codec import MAX_MESSAGE_BYTES, decode, encode
from aigovtool.wire.receipt import from_header, to_header

SYNC_S = 1.0
SUFFIX = ".receipts"
SESSIONS = "sessions"
MAX_FILE_BYTES = 1 << 30  # some million receipts; the file of a busier consumer is to be split
MAX_SESSION_BYTES = 2 * MAX_MESSAGE_BYTES

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")  # of loans, consumers and sessions, as file names


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """
    Return where receipts are kept unless told otherwise (XDG Base Directory, state).

    Raises:
        ConfigurationError: there is no home folder to say.
    """
    state = environ.get("XDG_STATE_HOME", "")
    try:
        base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    except RuntimeError:
        raise ConfigurationError(
            "no home folder to keep receipts in", mend="name a folder for receipts"
        ) from None
    return base / "aigovtool" / "receipts"


class ReceiptStore:
    """
    Keeps verified receipts in *folder*.

    Args:
        folder: made when it is missing.
        manifest: the policy by which the consumer accepted its enclaves; kept with each session.

    Raises:
        ConfigurationError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, *, manifest: Policy) -> None:
        self._folder = folder
        self._manifest = write_policy(manifest).encode()
        self._known: dict[tuple[LoanId, SessionId, ConsumerId], str] = {}  # the file of each
        self._unsynced: set[str] = set()
        self._synced_s = time.monotonic()
        try:
            _make(folder)
            usable = os.access(folder, os.W_OK | os.X_OK)
        except OSError as error:
            raise _unusable(folder, error.strerror) from None
        if not usable:
            raise _unusable(folder, "not writable")

    def keep(self, verified: VerifiedReceipt) -> None:
        """
        Keep a receipt.

        Raises:
            UnavailableError: it cannot be written; what was kept before stands.
            MalformedError: it names a loan, session or consumer that cannot name a file.
        """
        said = verified.receipt
        of = (said.loan, said.session, said.consumer)
        try:
            path = self._known.get(of)
            if path is None:
                path = self._known[of] = self._prepare(verified)
            _append(path, to_header(verified.signed).encode() + b"\n")
            self._unsynced.add(path)
            if time.monotonic() - self._synced_s >= SYNC_S:
                self.sync()
        except OSError as error:
            raise UnavailableError(
                f"the receipt cannot be kept in {self._folder}",
                code="receipts.kept",
                came=error.strerror,
            ) from None

    def sync(self) -> None:
        """Put on the disk what was kept; raises OSError."""
        while self._unsynced:
            with open(self._unsynced.pop(), "rb") as file:
                os.fsync(file.fileno())
        self._synced_s = time.monotonic()

    def close(self) -> None:
        """Put on the disk what was kept, if that can be done."""
        with suppress(OSError):
            self.sync()

    def _prepare(self, verified: VerifiedReceipt) -> str:
        """Keep the session of a receipt (Rule 4), and return the file that the receipt goes to."""
        said = verified.receipt
        for name in (said.loan, said.session, said.consumer):
            if not _NAME.fullmatch(name):
                raise MalformedError(
                    "a name in a receipt cannot name a file", came=ascii(name[:40])
                )
        loan = self._folder / said.loan
        self._keep_session(loan, verified)
        return str(loan / f"{said.consumer}{SUFFIX}")

    def _keep_session(self, loan: Path, verified: VerifiedReceipt) -> None:
        _make(loan)
        _make(loan / SESSIONS)
        path = loan / SESSIONS / f"{verified.receipt.session}.json"
        if path.exists():
            return
        kept = KeptSession(
            judged=verified.enclave.judged,
            document=verified.enclave.document,
            manifest=self._manifest,
        )
        staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with open(os.open(staged, _NEW, 0o600), "wb") as file:
                file.write(encode(kept))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process was first; its document is as good
                os.link(staged, path)
        finally:
            staged.unlink(missing_ok=True)
        for folder in (path.parent, loan, self._folder):
            _sync_folder(folder)


def keep_or_warn(store: ReceiptStore, verified: VerifiedReceipt) -> None:
    """Keep a receipt; an answer that was charged is not withheld because a disk is full."""
    try:
        store.keep(verified)
    except AIGovToolError as error:
        _log.warning("a receipt was not kept: %s", error)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MORE = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


def _append(path: str, line: bytes) -> None:
    descriptor = os.open(path, _MORE, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # somebody died in the middle of a line
        while line:
            line = line[os.write(descriptor, line) :]
    finally:
        os.close(descriptor)


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(folder: Path, why: str | None) -> ConfigurationError:
    return ConfigurationError(
        f"receipts cannot be kept in {folder}",
        came=why,
        mend="name a folder for receipts that you can write to",
    )


# --- reading ---------------------------------------------------------------------------------


def find_files(paths: Iterable[Path]) -> list[Path]:
    """
    Return the files of receipts in folders, however deep, and files that are named as they are.

    Raises:
        ConfigurationError: one of *paths* is not there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.rglob(f"*{SUFFIX}"))
        elif path.exists():
            found.append(path)
        else:
            raise ConfigurationError(f"there are no receipts at {path}", came="no such file")
    return found


def read_files(
    files: Iterable[Path],
) -> tuple[list[KeptReceipt], dict[SessionId, KeptSession]]:
    """
    Read receipts, and the sessions that are kept beside them.

    Raises:
        ConfigurationError: a file cannot be read, or is too large.
        MalformedError: a session's file is not one.
    """
    receipts: list[KeptReceipt] = []
    sessions: dict[SessionId, KeptSession] = {}
    for path in files:
        lines = _read(path, MAX_FILE_BYTES).split(b"\n")
        consumer = ConsumerId(path.stem) if path.suffix == SUFFIX else None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            signed = None
            with suppress(MalformedError):
                signed = from_header(line.strip().decode("latin-1"))
            receipts.append(
                KeptReceipt(source=f"{path}:{number}", consumer=consumer, signed=signed)
            )
        for kept in sorted((path.parent / SESSIONS).glob("*.json")):
            name = SessionId(kept.stem)
            if name not in sessions:
                sessions[name] = decode(
                    _read(kept, MAX_SESSION_BYTES), KeptSession, max_bytes=MAX_SESSION_BYTES
                )
    return receipts, sessions


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}", came=error.strerror) from None
    if len(data) > limit_bytes:
        raise ConfigurationError(f"{path} is too large", expected=f"at most {limit_bytes} bytes")
    return data
