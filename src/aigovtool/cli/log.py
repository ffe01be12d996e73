"""``aigovtool log``: check a custodian's transparency log without trusting the custodian."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aigovtool.cli.output import REFUSED, exits, json_option, print_json, result, talk

if TYPE_CHECKING:
    from aigovtool.cli.log_source import LogSource
    from aigovtool.errors import Reason
    from aigovtool.tlog.checkpoint import Checkpoint
    from aigovtool.tlog.note import NoteVerifier
    from aigovtool.wire.log import LogEntry

_file = click.Path(path_type=Path, dir_okay=False)

where_argument = click.argument("where", required=False, metavar="[DIR|URL]")
ticket_option = click.option(
    "--ticket", type=_file, help="The loan ticket: whose key, and where the log is."
)
custodian_key_option = click.option(
    "--custodian-key", metavar="ed25519:…", help="The custodian's public key, of manifest.toml."
)
key_option = click.option("--key", metavar="VKEY", help="The log's own key, as `log check` says.")


@click.group()
def log() -> None:
    """Check a custodian's transparency log, and proofs from it, without trusting it.

    Exit codes: 0 done and true, 1 not true (what is wrong is named), 2 malformed or misused,
    3 unavailable.
    """


@log.command()
@where_argument
@key_option
@custodian_key_option
@ticket_option
@click.option(
    "--since", type=_file, help="A checkpoint that you kept: the log must be its continuation."
)
@click.option("--keep", type=_file, help="Write the checkpoint there when all is well.")
@json_option
@exits
def check(
    *,
    where: str | None,
    key: str | None,
    custodian_key: str | None,
    ticket: Path | None,
    since: Path | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Prove a log whole: all entries and tiles come to the signed checkpoint.

    With --since also that it is the same log that it was: nothing dropped, rewritten or rolled
    back. Keep each checkpoint (--keep) and give it the next time.
    """
    import sys

    from aigovtool.errors import MalformedError
    from aigovtool.tlog.check import check_log
    from aigovtool.tlog.checkpoint import open_checkpoint
    from aigovtool.wire.log import read_entry

    source, verifier = _opened(where, key, custodian_key, ticket)
    signed = source.checkpoint()
    checkpoint = open_checkpoint(signed, verifier)
    before = None if since is None else open_checkpoint(_read(since), verifier)
    kinds: Counter[str] = Counter()
    unread = 0

    def seen(_: int, entry: bytes) -> None:
        nonlocal unread
        try:
            kinds[read_entry(entry).kind] += 1
        except MalformedError:  # of a newer program; whether it is in the log is what counts
            unread += 1

    found = check_log(checkpoint, source.read, since=before, seen=seen)
    if not found.faults and keep is not None:
        _write(keep, signed)
    if as_json:
        print_json(
            {
                "whole": not found.faults,
                "key": str(verifier),
                "size": checkpoint.size,
                "root": checkpoint.root.hex(),
                "since": None if before is None else before.size,
                "entries": found.entries,
                "tiles": found.tiles,
                "kinds": dict(sorted(kinds.items())),
                "unread": unread,
                "faults": found.faults,
            }
        )
    else:
        _tell(verifier, checkpoint, before, found.faults)
    if found.faults:
        sys.exit(REFUSED)


def _tell(
    verifier: NoteVerifier, checkpoint: Checkpoint, since: Checkpoint | None, faults: list[Reason]
) -> None:
    for fault in faults:
        result.print(f"fault {fault.code}: ", style="bold red", end="")
        _say(str(fault))
    size = checkpoint.size
    if faults:
        result.print(f"the log of {size} entries is NOT whole", style="bold red")
    else:
        goes_on = "" if since is None else f", and goes on from the {since.size} that it had"
        result.print(f"whole: {size} entries come to the signed root{goes_on}", style="bold green")
    _say(f"root {checkpoint.root.hex()}")
    _say(f"key  {verifier}")


def _say(line: str) -> None:
    """Print a line of a log that nobody vouches for: no control sequence reaches the terminal."""
    result.print("".join(c if c.isprintable() else "\ufffd" for c in line), markup=False)


@log.command()
@where_argument
@key_option
@custodian_key_option
@ticket_option
@click.option("--index", type=click.IntRange(min=0), help="Which entry, from 0.")
@click.option("--event", type=click.IntRange(min=1), help="Which event of the ledger.")
@click.option("--out", type=_file, help="Write it there (*.tlog-proof), instead of to stdout.")
@json_option
@exits
def prove(
    *,
    where: str | None,
    key: str | None,
    custodian_key: str | None,
    ticket: Path | None,
    index: int | None,
    event: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make a file that proves, offline and for years, that an entry is in the log."""
    from aigovtool.errors import ConfigurationError, NotFoundError
    from aigovtool.tlog.checkpoint import open_checkpoint
    from aigovtool.tlog.proof import prove as make
    from aigovtool.tlog.tiles import WIDTH, Tile, split_entries, tile_holding
    from aigovtool.wire.codec import encode
    from aigovtool.wire.log import ProofExtra

    if (index is None) == (event is None):
        raise ConfigurationError("which entry?", mend="give --index or --event")
    source, verifier = _opened(where, key, custodian_key, ticket)
    signed = source.checkpoint()
    checkpoint = open_checkpoint(signed, verifier)
    if event is not None:
        index = _find(source, checkpoint.size, event)
    assert index is not None
    if index >= checkpoint.size:
        raise NotFoundError(
            f"entry {index} is not in the log",
            code="log.index",
            expected=f"below {checkpoint.size}",
        )
    bundle = tile_holding(None, index, checkpoint.size)
    entry = split_entries(bundle, source.read(Tile(None, bundle.index, bundle.width)))[
        index % WIDTH
    ]
    extra = encode(ProofExtra(entry=entry))
    proof = make(index, signed, checkpoint, source.read, extra=extra)
    proof.verify(entry, verifier)
    data = proof.encode()
    if out is not None:
        _write(out, data)
        talk.print(f"wrote {out}")
    if as_json:
        print_json({"index": index, "size": checkpoint.size, "proof": data.decode()})
    elif out is None:
        click.echo(data.decode(), nl=False)


def _find(source: LogSource, size: int, event: int) -> int:
    """Return the last entry of an event; more than one tells of a ledger that was restored."""
    from aigovtool.errors import MalformedError, NotFoundError
    from aigovtool.tlog.tiles import WIDTH, split_entries, tiles_of
    from aigovtool.wire.log import read_entry

    found = None
    for tile in tiles_of(size):
        if tile.level is not None:
            break
        for at, entry in enumerate(split_entries(tile, source.read(tile))):
            try:
                if read_entry(entry).event == event:
                    found = tile.index * WIDTH + at
            except MalformedError:  # of a newer program
                continue
    if found is None:
        raise NotFoundError(f"the log has no entry of event {event}", code="log.event")
    return found


@log.command("verify-proof")
@click.argument("proof", type=_file)
@key_option
@custodian_key_option
@click.option(
    "--certificate", type=_file, help="With --custodian-key: the log's log-key.json, kept."
)
@click.option("--entry", type=_file, help="The entry, if the file does not carry it.")
@json_option
@exits
def verify_proof(
    *,
    proof: Path,
    key: str | None,
    custodian_key: str | None,
    certificate: Path | None,
    entry: Path | None,
    as_json: bool,
) -> None:
    """Check a proof's file offline, and show the entry and what opens it."""
    from aigovtool.cli.log_source import verifier_of
    from aigovtool.errors import ConfigurationError
    from aigovtool.tlog.proof import MAX_PROOF_BYTES, Proof
    from aigovtool.wire.codec import decode
    from aigovtool.wire.log import ProofExtra, open_entry, read_entry

    verifier = verifier_of(
        None if certificate is None else lambda: _read(certificate),
        key=key,
        custodian_key=custodian_key,
    )
    shown = Proof.parse(_read(proof, MAX_PROOF_BYTES))
    carried = None if shown.extra is None else decode(shown.extra, ProofExtra)
    if entry is not None:
        body = _read(entry)
    elif carried is not None:
        body = carried.entry
    else:
        raise ConfigurationError("the proof's file carries no entry", mend="give it with --entry")
    checkpoint = shown.verify(body, verifier)
    opening = None if carried is None else carried.opening
    event = None if opening is None else open_entry(body, opening)
    said = read_entry(body)
    if as_json:
        print_json(
            {
                "in_log": True,
                "origin": checkpoint.origin,
                "index": shown.index,
                "size": checkpoint.size,
                "root": checkpoint.root.hex(),
                "entry": said,
                "event": None if opening is None else json.loads(opening.event),
            }
        )
        return
    where = f"entry {shown.index} of {checkpoint.size} in {checkpoint.origin}"
    result.print(where, style="bold green", markup=False)
    _tell_entry(said)
    if event is not None:
        _say(f"opened: by {event.actor}")
        if event.consumer is not None:
            _say(f"  consumer {event.consumer}")
        _say(f"  {bytes(event.detail).decode(errors='replace')}")


def _tell_entry(said: LogEntry) -> None:
    _say(f"event {said.event}, {said.time.isoformat()}: {said.kind}")
    for name, value in (("loan", said.loan), ("session", said.session), ("lease", said.lease)):
        if value is not None:
            _say(f"  {name} {value}")
    for name, count in said.counts.items():
        _say(f"  {name} {count}")


def _opened(
    where: str | None, key: str | None, custodian_key: str | None, ticket: Path | None
) -> tuple[LogSource, NoteVerifier]:
    from aigovtool.cli.log_source import source_of, verifier_of
    from aigovtool.wire.ticket import read_ticket

    given = None if ticket is None else read_ticket(ticket)
    source = source_of(where, given)
    verifier = verifier_of(
        source.certificate,
        key=key,
        custodian_key=custodian_key if given is None else given.custodian_key,
    )
    return source, verifier


def _read(path: Path, max_bytes: int = 1 << 20) -> bytes:
    from aigovtool.errors import ConfigurationError

    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}", code="file", came=error.strerror) from None


def _write(path: Path, data: bytes) -> None:
    from aigovtool.errors import ConfigurationError

    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}", code="file", came=error.strerror) from None
