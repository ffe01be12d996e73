"""
The mark: what the ledger has reached, kept outside its folder and its database.

A ledger that is behind its mark was put back from a copy. The mark is one small file for each
custodian, in the user's state folder or where ``--mark`` says.

Rule 1: it is written after a commit and before anything that was decided leaves the process. So a
        ledger is never behind its mark unless it was rolled back, whatever is killed when. (On
        PostgreSQL a push leaves with the commit itself, before the mark; no lease or key does.
        With replicas each has a mark of its own, and none vouches for an account.)
Rule 2: a write is a few `pwrite` calls and no `fsync`: what the system has survives the death of
        the process. The disk gets it every second and at the end; after the machine itself died the
        mark may be old, says so (`Marked.current`), and vouches for no account.
Rule 3: one custodian at a time holds it. Two with one mark serve copies of one ledger.

The file: a header, then a slot for each account, each with a checksum of its own, little-endian.
An account's slot is written before the header that follows it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aigovtool.crypto.signing import fingerprint
from aigovtool.custodian import files
from aigovtool.custodian.budget import Account
from aigovtool.errors import ConfigurationError, ConflictError, MalformedError, UnavailableError
from aigovtool.ids import ConsumerId, LoanId, sha256
from aigovtool.wire.enrolment import LedgerHead

MARK_VARIABLE = "AIGOVTOOL_MARK"
STATE_VARIABLE = "XDG_STATE_HOME"  # XDG Base Directory Specification
INCARNATION_BYTES = 16

_MAGIC = b"aigmark1"
_HEADER = struct.Struct("<8s32s16sQ32s16sB")  # magic, key, incarnation, event, digest, boot, closed
_SLOT = struct.Struct("<40sQQ")  # account, granted, left
_CHECKSUM = struct.Struct("<I")
_FIRST_SLOT = 256
_SLOT_BYTES = 64
_MAX_BYTES = 256 << 20  # four million accounts
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

AccountId = LoanId | ConsumerId


@dataclass(frozen=True, slots=True)
class Vouched:
    """What an account had: credits ever granted, and those that nobody held."""

    granted: int
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """
    What a mark says.

    Args:
        accounts: of loans and of consumers with a budget of their own.
        current: nothing was written after this; False when the machine died since, or when other
            processes write the same ledger.
    """

    head: LedgerHead
    accounts: Mapping[str, Vouched]
    current: bool


def mark_path(
    public_key: bytes, environ: Mapping[str, str], *, replica: Path | None = None
) -> Path:
    """
    Return where the mark of the custodian with this key is, unless ``--mark`` says.

    Args:
        replica: its data folder, when several processes serve one database: each has its mark.
    """
    if MARK_VARIABLE in environ:
        return Path(environ[MARK_VARIABLE])
    home = Path(environ["HOME"]) if "HOME" in environ else Path.home()
    state = environ.get(STATE_VARIABLE)
    folder = Path(state) if state else home / ".local" / "state"
    whose = fingerprint(public_key)
    if replica is not None:
        whose += "-" + sha256(str(replica.resolve()).encode()).hex()[:8]
    return folder / "aigovtool" / f"custodian-{whose}.mark"


@contextlib.contextmanager
def held_mark(path: Path, public_key: bytes, *, shared: bool = False) -> Iterator[Mark]:
    """
    Hold the mark at *path* alone, for the length of the block.

    Args:
        shared: other processes write the ledger too, each with a mark of its own; then none of
            these marks knows what an account has become.

    Raises:
        ConflictError: another custodian of this key holds it.
        ConfigurationError: it cannot be made or read there.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        with files.held(path.with_name(path.name + ".lock")):
            mark = Mark(path, public_key, shared=shared)
            try:
                yield mark
            finally:
                mark.close()
    except ConflictError as error:
        if error.reasons[0].code != files.FOLDER_IN_USE:
            raise
        raise ConflictError(
            "another custodian with this key serves from this machine",
            code="mark.in_use",
            came=str(path),
            mend="two that serve copies of one ledger would both lend its credits: end one",
        ) from None


class Mark:
    """A mark that is held; `held_mark` makes it. Not for several threads at once."""

    def __init__(self, path: Path, public_key: bytes, *, shared: bool = False) -> None:
        self.path = path
        self.shared = shared
        self._public_key = public_key
        self._descriptor: int | None = None
        self._head: LedgerHead | None = None
        self._slots: dict[str, int] = {}
        self._unwritten: dict[AccountId, Account] = {}

    def read(self) -> Marked | None:
        """
        Return what it says, None when there is none.

        Raises:
            MalformedError: it is damaged, or of another custodian.
            ConfigurationError: it cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(self.path, error) from None
        marked = _parse(data, self._public_key, self.path)
        return dataclasses.replace(marked, current=marked.current and not self.shared)

    def begin(self, head: LedgerHead, accounts: Mapping[AccountId, Account]) -> None:
        """
        Write it whole, durably, in the place of any that is there, and go on from it.

        Raises:
            ConfigurationError, UnavailableError: it cannot be written.
        """
        self._let_go()
        self._unwritten.clear()
        self._slots = {account: index for index, account in enumerate(accounts)}
        slots = b"".join(_slot(account, now) for account, now in accounts.items())
        new = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.partial")
        try:
            descriptor = os.open(
                new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, files.PRIVATE
            )
            try:
                header = self._header(head, closed=False)
                with open(os.dup(descriptor), "wb") as file:
                    file.write(header.ljust(_FIRST_SLOT, b"\0") + slots)
                os.fsync(descriptor)
                new.rename(self.path)
                files.sync_folder(self.path.parent)
            except BaseException:
                os.close(descriptor)
                new.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise _unusable(self.path, error) from None
        self._descriptor, self._head = descriptor, head

    def advance(self, head: LedgerHead, accounts: Mapping[AccountId, Account]) -> None:
        """
        Write how far the ledger is now, and these accounts.

        Raises:
            UnavailableError: that did not succeed; it is tried again with the next call.
        """
        for account, now in accounts.items():
            if now.granted or account in self._slots:  # most consumers have no account of their own
                self._unwritten[account] = now
        if self._descriptor is None:
            raise UnavailableError("the mark was not begun", code="mark.unwritten")
        try:
            for account, now in list(self._unwritten.items()):
                index = self._slots.setdefault(account, len(self._slots))
                os.pwrite(self._descriptor, _slot(account, now), _FIRST_SLOT + index * _SLOT_BYTES)
                del self._unwritten[account]
            if head != self._head:
                os.pwrite(self._descriptor, self._header(head, closed=False), 0)
                self._head = head
        except OSError as error:
            raise UnavailableError(
                f"the mark {self.path} cannot be written",
                code="mark.unwritten",
                came=error.strerror,
                mend="free space there; nothing is leased without it",
            ) from None

    def sync(self) -> None:
        """Let the disk have it; raises UnavailableError."""
        if self._descriptor is not None:
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                raise UnavailableError(
                    f"the mark {self.path} cannot be written", code="mark.unwritten"
                ) from error

    def close(self) -> None:
        """Say that nothing comes after this, and let it go."""
        if self._descriptor is not None and self._head is not None and not self._unwritten:
            with contextlib.suppress(OSError):  # then it is not said, which is the careful side
                os.fsync(self._descriptor)
                os.pwrite(self._descriptor, self._header(self._head, closed=True), 0)
                os.fsync(self._descriptor)
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _header(self, head: LedgerHead, *, closed: bool) -> bytes:
        return _summed(
            _HEADER.pack(
                _MAGIC,
                self._public_key,
                head.incarnation,
                head.event,
                head.digest,
                _boot_id(),
                closed,
            )
        )


def _parse(data: bytes, public_key: bytes, path: Path) -> Marked:
    magic, key, incarnation, event, digest, boot, closed = _HEADER.unpack(
        _checked(data[: _HEADER.size + _CHECKSUM.size], _HEADER.size, path)
    )
    if magic != _MAGIC or key != public_key:
        raise MalformedError(
            f"the mark {path} is of another custodian",
            code="mark.foreign",
            expected=fingerprint(public_key),
            came=fingerprint(key),
            mend="give each custodian a mark of its own",
        )
    accounts = {}
    for at in range(_FIRST_SLOT, len(data), _SLOT_BYTES):
        account, granted, left = _SLOT.unpack(_checked(data[at:], _SLOT.size, path))
        accounts[account.rstrip(b"\0").decode("ascii", "replace")] = Vouched(granted, left)
    return Marked(
        head=LedgerHead(incarnation=incarnation, event=event, digest=digest),
        accounts=accounts,
        current=bool(closed) or boot == _boot_id(),
    )


def _slot(account: AccountId, now: Account) -> bytes:
    return _summed(_SLOT.pack(account.encode(), now.granted, now.left)).ljust(_SLOT_BYTES, b"\0")


def _summed(data: bytes) -> bytes:
    return data + _CHECKSUM.pack(zlib.crc32(data))


def _checked(data: bytes, size: int, path: Path) -> bytes:
    if data[size : size + _CHECKSUM.size] != _CHECKSUM.pack(zlib.crc32(data[:size])):
        raise MalformedError(f"the mark {path} is damaged", code="mark.damaged")
    return data[:size]


def _boot_id() -> bytes:
    """Return which boot of this machine this is; 16 bytes, never twice the same when unknown."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))[:16]
    except (OSError, ValueError):
        return secrets.token_bytes(16)


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the custodian's mark cannot be kept at {path}",
        code="mark",
        came=error.strerror,
        mend=f"name a place outside the data folder with --mark FILE or {MARK_VARIABLE}",
    )
