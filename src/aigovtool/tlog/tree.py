"""
The Merkle tree of RFC 6962, section 2.1 (the same in RFC 9162, 2.1), over SHA-256.

Rule 1: a leaf is hashed as ``00 || entry`` and a node as ``01 || left || right``, so that neither
        stands in for the other.
Rule 2: whoever makes a root or a proof reads hashes of *complete* subtrees by (level, index), which
        is all that tiles hold; everything else follows by hashing.
Rule 3: whoever verifies needs no tree: a root, a size and a list of hashes, and an exception when
        they do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from aigovtool.errors import MalformedError, PromiseBrokenError, VerificationError
from aigovtool.ids import sha256

HASH_BYTES = 32
MAX_SIZE = 1 << 63  # entries; C2SP tlog-tiles numbers levels up to 63
EMPTY_ROOT = sha256(b"")

Subtrees: TypeAlias = Callable[[int, int], bytes]
"""Gives ``MTH(D[index * 2**level : (index + 1) * 2**level])``, 32 bytes, by level and index."""


def hash_leaf(entry: bytes) -> bytes:
    """Return the 32-byte hash of a log entry."""
    return sha256(b"\x00" + entry)


def hash_children(left: bytes, right: bytes) -> bytes:
    """Return the 32-byte hash of a node."""
    return sha256(b"\x01" + left + right)


class Edge:
    """
    The right edge of a growing tree: what is needed to add leaves and to know the root.

    It is the list of hashes of the complete subtrees that the tree falls into, the largest first,
    one for each bit that is set in its size.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        """Raises MalformedError unless there is one 32-byte hash for each set bit of *size*."""
        self.size = size
        self.hashes = list(hashes)
        if not 0 <= size < MAX_SIZE or len(self.hashes) != size.bit_count():
            raise MalformedError(
                f"not the edge of a tree of {size} entries",
                expected=f"{max(size, 0).bit_count()} hashes",
                came=f"{len(self.hashes)}",
            )
        if any(len(each) != HASH_BYTES for each in self.hashes):
            raise MalformedError(f"a hash in a tree's edge is not {HASH_BYTES} bytes")

    @classmethod
    def of(cls, size: int, subtrees: Subtrees) -> Edge:
        """Read the edge of a tree of *size* entries."""
        hashes, start = [], 0
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                hashes.append(subtrees(level, start >> level))
                start += 1 << level
        return cls(size, hashes)

    def add(self, leaf_hash: bytes) -> None:
        """Append one leaf."""
        carry, rest = leaf_hash, self.size
        while rest & 1:
            carry = hash_children(self.hashes.pop(), carry)
            rest >>= 1
        self.hashes.append(carry)
        self.size += 1

    def root(self) -> bytes:
        """Return the root hash of the tree."""
        if not self.hashes:
            return EMPTY_ROOT
        *above, root = self.hashes
        for left in reversed(above):
            root = hash_children(left, root)
        return root


def tree_root(size: int, subtrees: Subtrees) -> bytes:
    """Return the root hash of the tree's first *size* entries."""
    return Edge.of(size, subtrees).root()


def inclusion_proof(index: int, size: int, subtrees: Subtrees) -> list[bytes]:
    """
    Return ``PATH(index, D[size])`` (RFC 6962, 2.1.1), from the leaf's sibling up.

    Raises:
        PromiseBrokenError: there is no such entry in a tree of that size.
    """
    if not 0 <= index < size:
        raise PromiseBrokenError(f"entry {index} is not in a tree of {size}")
    path, lo, hi = [], 0, size
    while hi - lo > 1:
        middle = lo + _split(hi - lo)
        if index < middle:
            path.append(_range(middle, hi, subtrees))
            hi = middle
        else:
            path.append(_range(lo, middle, subtrees))
            lo = middle
    return path[::-1]


def consistency_proof(old: int, size: int, subtrees: Subtrees) -> list[bytes]:
    """
    Return ``PROOF(old, D[size])`` (RFC 6962, 2.1.2); empty when either tree says it alone.

    Raises:
        PromiseBrokenError: *old* is larger than *size*.
    """
    if not 0 <= old <= size:
        raise PromiseBrokenError(f"a tree of {old} is not the beginning of one of {size}")
    if old in (0, size):
        return []
    proof, lo, hi = [], 0, size
    whole = True  # b of the RFC: the old root itself is the subtree, and need not be sent
    while old != hi:
        middle = lo + _split(hi - lo)
        if old <= middle:
            proof.append(_range(middle, hi, subtrees))
            hi = middle
        else:
            proof.append(_range(lo, middle, subtrees))
            lo, whole = middle, False
    if not whole:
        proof.append(_range(lo, hi, subtrees))
    return proof[::-1]


def verify_inclusion(
    leaf_hash: bytes, index: int, size: int, root: bytes, proof: Sequence[bytes]
) -> None:
    """
    Check that the leaf is entry *index* of the tree (RFC 9162, 2.1.3.2).

    Raises:
        VerificationError: it is not, or *proof* is not a proof of it.
    """
    came = root_by_inclusion(leaf_hash, index, size, proof)
    if came != root:
        raise VerificationError(
            f"the entry is not number {index} of this tree",
            code="log.inclusion",
            expected=f"root {root.hex()}",
            came=f"root {came.hex()}",
        )


def root_by_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """
    Return the root of the tree in which *proof* puts the leaf; nothing is shown until somebody
    vouches for that root.

    Raises:
        VerificationError: *proof* is no path of a tree of that size.
    """
    if not 0 <= index < size:
        raise VerificationError(
            "the entry is not in the tree",
            code="log.index",
            expected=f"below {size}",
            came=f"{index}",
        )
    node, last = index, size - 1
    came = leaf_hash
    for each in proof:
        _check_hash(each)
        if last == 0:
            raise _not_proof("inclusion", "more hashes than the tree has levels")
        if node & 1 or node == last:
            came = hash_children(each, came)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            came = hash_children(came, each)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise _not_proof("inclusion", "fewer hashes than the path to the root needs")
    return came


def verify_consistency(
    old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> None:
    """
    Check that the tree's first *old* entries are the tree of *old_root* (RFC 9162, 2.1.4.2).

    Raises:
        VerificationError: they are not: the log was rewritten, forked or cut; or *proof* is wrong.
    """
    if old > size:
        raise VerificationError(
            "the log is shorter than it was",
            code="log.rollback",
            expected=f"at least {old} entries",
            came=f"{size}",
        )
    if old in (0, size):
        if proof:
            raise _not_proof("consistency", "hashes where none are needed")
        if old_root != (EMPTY_ROOT if old == 0 else root):
            raise _forked(old, old_root, EMPTY_ROOT if old == 0 else root)
        return
    hashes = list(proof)
    if old & (old - 1) == 0:  # a complete subtree: its root is what the reader has
        hashes.insert(0, old_root)
    if not hashes:
        raise _not_proof("consistency", "no hashes")
    node, last = old - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old_came = came = hashes[0]
    for each in hashes:
        _check_hash(each)
    for each in hashes[1:]:
        if last == 0:
            raise _not_proof("consistency", "more hashes than the tree has levels")
        if node & 1 or node == last:
            old_came, came = hash_children(each, old_came), hash_children(each, came)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            came = hash_children(came, each)
        node, last = node >> 1, last >> 1
    if last != 0:
        raise _not_proof("consistency", "fewer hashes than the path to the root needs")
    if old_came != old_root:
        raise _forked(old, old_root, old_came)
    if came != root:
        raise VerificationError(
            "the log's later part does not belong to its root",
            code="log.consistency",
            expected=f"root {root.hex()}",
            came=f"root {came.hex()}",
        )


def _forked(old: int, expected: bytes, came: bytes) -> VerificationError:
    return VerificationError(
        f"the log's first {old} entries are not those that it showed before",
        code="log.fork",
        expected=f"root {expected.hex()}",
        came=f"root {came.hex()}",
    )


def _not_proof(what: str, why: str) -> VerificationError:
    return VerificationError(f"not a proof of {what}: {why}", code=f"log.{what}")


def _check_hash(each: bytes) -> None:
    if len(each) != HASH_BYTES:
        raise VerificationError(
            "a hash in a proof has another length",
            code="log.proof",
            expected=f"{HASH_BYTES} bytes",
            came=f"{len(each)}",
        )


def _split(size: int) -> int:
    """Return the largest power of two below *size*, which is at least 2 (k of the RFC)."""
    return 1 << (size - 1).bit_length() - 1


def _range(lo: int, hi: int, subtrees: Subtrees) -> bytes:
    """Return the hash of ``D[lo:hi]``, of which every part that `_split` makes is aligned."""
    size = hi - lo
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return subtrees(level, lo >> level)
    middle = lo + _split(size)
    return hash_children(_range(lo, middle, subtrees), _range(middle, hi, subtrees))
