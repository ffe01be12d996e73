"""
C2SP ``tlog-proof``: a file that shows, with nothing but the log's key, that an entry is in a log.

Rule 1: the checkpoint is kept byte for byte as the log signed it.
Rule 2: `extra` is not signed by anyone and is never believed; what is put there must prove itself.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from aigovtool.errors import MalformedError, TooLargeError
from aigovtool.tlog.checkpoint import Checkpoint, open_checkpoint, parse_decimal, parse_hash
from aigovtool.tlog.note import MAX_NOTE_BYTES, NoteVerifier
from aigovtool.tlog.tiles import MAX_ENTRY_BYTES, ReadTile, TileSubtrees
from aigovtool.tlog.tree import consistency_proof, hash_leaf, inclusion_proof, verify_inclusion

HEADER = "c2sp.org/tlog-proof@v1"
MAX_HASHES = 63  # a tree of 2**63 entries has no longer path
MAX_PROOF_BYTES = MAX_NOTE_BYTES + 2 * MAX_ENTRY_BYTES + MAX_HASHES * 45 + 64


@dataclass(frozen=True, slots=True)
class Proof:
    """
    That something is entry `index` of the log that signed `checkpoint`.

    Args:
        index: of the entry, from 0.
        hashes: its inclusion proof, the leaf's sibling first.
        checkpoint: the signed note.
        extra: bytes of the application's own, or None; unauthenticated.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def encode(self) -> bytes:
        """Return the proof as a file."""
        lines = [HEADER]
        if self.extra is not None:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(each).decode() for each in self.hashes]
        return ("\n".join(lines) + "\n\n").encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> Proof:
        """Read a proof's file; raises TooLargeError or MalformedError, and believes nothing."""
        if len(data) > MAX_PROOF_BYTES:
            raise TooLargeError("proof too large", expected=f"at most {MAX_PROOF_BYTES} bytes")
        head, blank, checkpoint = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            lines = []
        if not blank or len(lines) < 2 or lines[0] != HEADER:
            raise MalformedError("not a log's proof", code="log.proof", expected=HEADER)
        extra = None
        if lines[1].startswith("extra "):
            extra = _extra(lines.pop(1).removeprefix("extra "))
        if len(lines) < 2 or not lines[1].startswith("index "):
            raise MalformedError("a log's proof has no index", code="log.proof")
        if len(lines) - 2 > MAX_HASHES:
            raise MalformedError("a log's proof is too long", code="log.proof")
        return cls(
            index=parse_decimal(lines[1].removeprefix("index "), "a proof's index"),
            hashes=tuple(parse_hash(each, "a proof's hash") for each in lines[2:]),
            checkpoint=checkpoint,
            extra=extra,
        )

    def verify(self, entry: bytes, verifier: NoteVerifier) -> Checkpoint:
        """
        Check that *entry* is in *verifier*'s log, and return the log's checkpoint.

        Raises:
            MalformedError: the checkpoint cannot be read.
            VerificationError: of another log, not signed by it, or the entry is not there.
        """
        checkpoint = open_checkpoint(self.checkpoint, verifier)
        verify_inclusion(
            hash_leaf(entry), self.index, checkpoint.size, checkpoint.root, self.hashes
        )
        return checkpoint


def prove(
    index: int, signed: bytes, checkpoint: Checkpoint, read: ReadTile, *, extra: bytes | None = None
) -> Proof:
    """
    Make the proof of entry *index* from the tiles of a log.

    It is as true as the tiles are: `Proof.verify` says whether.

    Args:
        signed: the signed note of *checkpoint*.
    """
    subtrees = TileSubtrees(checkpoint.size, read)
    hashes = inclusion_proof(index, checkpoint.size, subtrees)
    return Proof(index, tuple(hashes), signed, extra)


def prove_consistency(old: int, checkpoint: Checkpoint, read: ReadTile) -> list[bytes]:
    """Make the proof, from tiles, that the log of *old* entries is the beginning of this one."""
    return consistency_proof(old, checkpoint.size, TileSubtrees(checkpoint.size, read))


def _extra(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("a proof's extra data is not base64", code="log.proof") from None
    if base64.b64encode(raw).decode() != text:
        raise MalformedError("a proof's extra data is not canonical base64", code="log.proof")
    return raw
