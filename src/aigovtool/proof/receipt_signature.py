"""
The signature of a receipt: its own, or one that it shares with others drawn up in the same turn.

An enclave that answers several queries at once signs their receipts once: it makes them the leaves
of a Merkle tree (`tlog.tree`, RFC 6962) and signs its head. `Signed.signature` of a receipt is then

* 64 bytes: Ed25519 over the payload (`Label.RECEIPT`), or
* a head and a path: Ed25519 over ``size || root`` (`Label.RECEIPTS_HEAD`, 64 bytes), the tree's
  size and the receipt's index from 0 (2 bytes each, big-endian), and the hashes of its inclusion
  proof (32 bytes each, its sibling first; RFC 9162, 2.1.3).

Rule 1: either way a receipt proves itself alone, to whoever has the attested key.
Rule 2: one that stands alone has the first form: a tree of one is refused, so that a receipt is not
        signed in two ways.
Rule 3: what the payload says, its number and chain above all, is the same in both forms.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SIGNATURE_BYTES, SigningKey, verify_signature
from aigovtool.errors import PromiseBrokenError, VerificationError
from aigovtool.tlog.tree import HASH_BYTES, hash_children, hash_leaf, root_by_inclusion
from aigovtool.wire.codec import Signed, decode
from aigovtool.wire.receipt import Receipt

MAX_TREE = 1024  # receipts under one head: a path of 10 hashes fits into a header

_PLACE = struct.Struct(">HH")  # size, index
_SIZE = struct.Struct(">H")
_PATH_AT = SIGNATURE_BYTES + _PLACE.size


def sign_receipts(key: SigningKey, payloads: Sequence[bytes]) -> list[Signed]:
    """
    Sign receipts with one signature.

    Args:
        payloads: 1 to `MAX_TREE` of them.
    """
    count = len(payloads)
    if count == 1:
        signature = key.sign(Label.RECEIPT, payloads[0])
        return [Signed(payload=payloads[0], signature=signature)]
    if not 1 <= count <= MAX_TREE:
        raise PromiseBrokenError(f"{count} receipts cannot be signed at once")
    levels = _levels([hash_leaf(payload) for payload in payloads])
    head = key.sign(Label.RECEIPTS_HEAD, _SIZE.pack(count) + levels.pop()[0])
    signed = []
    for index, payload in enumerate(payloads):
        signature, place = head + _PLACE.pack(count, index), index
        for level in levels:
            if place ^ 1 < len(level):
                signature += level[place ^ 1]
            place >>= 1
        signed.append(Signed(payload=payload, signature=signature))
    return signed


def verify_receipt_signature(signed: Signed, *, public_key: bytes) -> None:
    """
    Check that the owner of *public_key* signed a receipt, in either form.

    Raises:
        VerificationError: the signature does not hold, or the receipt is not in the signed tree.
    """
    if len(signed.signature) == SIGNATURE_BYTES:
        verify_signature(public_key, Label.RECEIPT, signed.payload, signed.signature)
        return
    path = signed.signature[_PATH_AT:]
    if len(signed.signature) < _PATH_AT or len(path) % HASH_BYTES:
        raise _no_form(f"{len(signed.signature)} bytes")
    size, index = _PLACE.unpack_from(signed.signature, SIGNATURE_BYTES)
    hashes = [path[at : at + HASH_BYTES] for at in range(0, len(path), HASH_BYTES)]
    if not 2 <= size <= MAX_TREE:  # Rule 2
        raise _no_form(f"a tree of {size}")
    root = root_by_inclusion(hash_leaf(signed.payload), index, size, hashes)
    verify_signature(
        public_key, Label.RECEIPTS_HEAD, _SIZE.pack(size) + root, signed.signature[:SIGNATURE_BYTES]
    )


def open_receipt(signed: Signed, *, public_key: bytes) -> Receipt:
    """
    Check a receipt's signature by *public_key*, then read it.

    Raises:
        VerificationError: the signature does not hold.
        MalformedError: it is not a receipt.
    """
    verify_receipt_signature(signed, public_key=public_key)
    return decode(signed.payload, Receipt)


def _no_form(came: str) -> VerificationError:
    return VerificationError(
        "a receipt's signature has neither of its forms",
        code="signature",
        expected=f"{SIGNATURE_BYTES} bytes, or these, a tree of 2 to {MAX_TREE}, and a path",
        came=came,
    )


def _levels(leaves: list[bytes]) -> list[list[bytes]]:
    """Return the nodes of the tree, the leaves first and the root last.

    A node without a sibling goes up as it is: that is how RFC 6962 splits an odd number.
    """
    levels = [leaves]
    while len(leaves) > 1:
        above = [hash_children(*leaves[at : at + 2]) for at in range(0, len(leaves) - 1, 2)]
        if len(leaves) % 2:
            above.append(leaves[-1])
        levels.append(above)
        leaves = above
    return levels
