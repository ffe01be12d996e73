"""
The pass/fail sheet of a drill: what was measured, what was promised, and a signature over both.

A scenario measures; `judge` alone says whether that is what is promised, so that a doctored or
broken measurement fails like a broken product does.

The file is JSON: the drill's public key, and the signed payload (`Label.DRILL_SHEET`), which is the
`Sheet`. What a signature by a key made for the occasion shows is that nobody changed the sheet
since; who ran it, only a key that the reader knows can show.
"""

from __future__ import annotations

from pathlib import Path

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey, format_public_key, parse_public_key
from aigovtool.drill.reconcile import Reconciliation
from aigovtool.errors import ConfigurationError, MalformedError, VerificationError
from aigovtool.wire.codec import Message, Signed, Time, decode, encode, open_signed, sign

MAX_SHEET_BYTES = 4 << 20
VERSION = 1


class CutOff(Message, frozen=True, kw_only=True):
    """
    How long queries were still admitted after a fault.

    Args:
        after: what happened.
        measured_s: from that moment to the last answer of a query that was asked since.
        bound_s: what was promised.
        tried: queries that were refused, or still waited, after the bound; none means that nothing
            was shown.
    """

    after: str
    measured_s: float
    bound_s: float
    tried: int


class Measured(Message, frozen=True, kw_only=True):
    """
    What a scenario saw.

    Args:
        cut_offs: each one that it provoked.
        count: receipts against the ledger, None when the scenario did not come that far.
        checks: what else had to hold, with whether it did.
        notes: for people.
    """

    cut_offs: tuple[CutOff, ...] = ()
    count: Reconciliation | None = None
    checks: tuple[tuple[str, bool], ...] = ()
    notes: tuple[str, ...] = ()


class Result(Message, frozen=True, kw_only=True):
    """One line of the sheet; `wrong` is empty when it passed. Skipped ones say why."""

    name: str
    title: str
    seconds: float
    measured: Measured
    wrong: tuple[str, ...]
    skipped: str | None = None

    @property
    def passed(self) -> bool:
        return not self.wrong


class Sheet(Message, frozen=True, kw_only=True):
    """
    Args:
        tee: what the enclaves attested with.
        simulated: it protects nothing from the machine's owner.
        quick: shorter leases and fewer repetitions.
    """

    version: int
    software: str
    tee: str
    simulated: bool
    quick: bool
    began: Time
    ended: Time
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)


class SignedSheet(Message, frozen=True, kw_only=True):
    """The file; `key` is the drill's public key, ``ed25519:…``."""

    key: str
    signed: Signed


def judge(measured: Measured) -> tuple[str, ...]:
    """Return every way in which what was measured is not what is promised."""
    wrong = [
        f"after {one.after}, queries were admitted for {one.measured_s:.2f} s; "
        f"at most {one.bound_s:.2f} s was promised"
        for one in measured.cut_offs
        if not 0 <= one.measured_s <= one.bound_s
    ]
    wrong += [
        f"after {one.after}, nobody asked past the bound: nothing was shown"
        for one in measured.cut_offs
        if one.tried < 1
    ]
    wrong += [what for what, held in measured.checks if not held]
    count = measured.count
    if count is None:
        wrong.append("the receipts were not held against the ledger")
    else:
        wrong += count.wrong
        if count.served > count.granted:
            wrong.append(f"{count.served} served, {count.granted} granted")
        if count.served < 1:
            wrong.append("nothing was served: nothing was shown")
        if count.leased:
            wrong.append(f"{count.leased} credits are neither settled nor forfeited")
    return tuple(dict.fromkeys(wrong))


def write_sheet(sheet: Sheet, key: SigningKey) -> bytes:
    """Sign a sheet and return the file's bytes."""
    signed = sign(sheet, key, Label.DRILL_SHEET)
    return encode(SignedSheet(key=format_public_key(key.public_key), signed=signed)) + b"\n"


def read_sheet(data: bytes, *, key: str | None = None) -> tuple[Sheet, str]:
    """
    Check a sheet and return it with the key that signed it.

    The verdicts in it are judged again from its measurements.

    Args:
        key: who must have signed it, ``ed25519:…``; None takes the key that the file names.

    Raises:
        MalformedError: not a sheet, or of a version that is not known.
        VerificationError: it was changed since, another key signed it, or a verdict in it is not
            what its measurements say.
    """
    file = decode(data, SignedSheet, max_bytes=MAX_SHEET_BYTES)
    if key is not None and key != file.key:
        raise VerificationError(
            "the sheet is signed by another key", code="drill.key", expected=key, came=file.key
        )
    sheet = open_signed(
        file.signed, Sheet, public_key=parse_public_key(file.key), label=Label.DRILL_SHEET
    )
    if sheet.version != VERSION:
        raise MalformedError(
            "a sheet of a version that is not known", expected=str(VERSION), came=str(sheet.version)
        )
    for result in sheet.results:
        if result.skipped is None and not set(judge(result.measured)) <= set(result.wrong):
            raise VerificationError(
                f"the scenario {result.name} did not pass, and the sheet says that it did",
                code="drill.verdict",
                came="; ".join(judge(result.measured)),
            )
    return sheet, file.key


def read_file(path: Path) -> bytes:
    """Return a sheet's bytes; raises ConfigurationError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_SHEET_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the sheet {path}",
            came=error.strerror,
            mend="name the file that `aigovtool drill --output` wrote",
        ) from None
