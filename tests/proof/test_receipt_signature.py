"""Receipts that share a signature: each proves itself alone, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SIGNATURE_BYTES, SigningKey
from aigovtool.errors import PromiseBrokenError, VerificationError
from aigovtool.proof.receipt_signature import (
    MAX_TREE,
    sign_receipts,
    verify_receipt_signature,
)
from aigovtool.tlog.tree import Edge, hash_leaf, inclusion_proof, tree_root
from aigovtool.wire.codec import Signed
from aigovtool.wire.receipt import MAX_RECEIPT_BYTES, from_header, to_header

KEY = SigningKey.generate()


def payloads(count: int) -> list[bytes]:
    return [b"receipt %d" % number for number in range(count)]


def is_genuine(signed: Signed) -> bool:
    try:
        verify_receipt_signature(signed, public_key=KEY.public_key)
    except VerificationError:
        return False
    return True


@given(count=st.integers(1, 40))
def test_each_receipt_proves_itself_alone(count: int) -> None:
    signed = sign_receipts(KEY, payloads(count))
    assert [one.payload for one in signed] == payloads(count)
    assert all(is_genuine(from_header(to_header(one))) for one in signed)


@given(count=st.integers(2, 40))
def test_the_tree_is_that_of_rfc_6962(count: int) -> None:
    leaves = [hash_leaf(payload) for payload in payloads(count)]

    def subtrees(level: int, index: int) -> bytes:
        edge = Edge()
        for leaf in leaves[index << level : (index + 1) << level]:
            edge.add(leaf)
        return edge.root()

    head = count.to_bytes(2, "big") + tree_root(count, subtrees)
    expected_head = KEY.sign(Label.RECEIPTS_HEAD, head)  # Ed25519 gives one signature
    for index, one in enumerate(sign_receipts(KEY, payloads(count))):
        place = count.to_bytes(2, "big") + index.to_bytes(2, "big")
        path = b"".join(inclusion_proof(index, count, subtrees))
        assert one.signature == expected_head + place + path


def test_one_alone_is_signed_as_ever() -> None:
    (one,) = sign_receipts(KEY, [b"receipt"])
    assert one.signature == KEY.sign(Label.RECEIPT, b"receipt")


@given(count=st.integers(2, 9), data=st.data())
def test_no_bit_of_a_receipt_can_be_changed(count: int, data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(sign_receipts(KEY, payloads(count))))
    whole = bytearray(one.payload + one.signature)
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    size = len(one.payload)
    assert not is_genuine(Signed(payload=bytes(whole[:size]), signature=bytes(whole[size:])))


@given(count=st.integers(2, 9), data=st.data())
def test_a_path_proves_no_other_receipt(count: int, data: st.DataObject) -> None:
    signed = sign_receipts(KEY, payloads(count))
    mine, other = data.draw(st.permutations(signed))[:2]
    assert not is_genuine(Signed(payload=mine.payload, signature=other.signature))
    assert not is_genuine(Signed(payload=b"never drawn up", signature=other.signature))


@given(count=st.integers(1, 9), cut=st.integers(0, 200), more=st.integers(1, 100))
def test_a_cut_or_lengthened_signature_is_none(count: int, cut: int, more: int) -> None:
    one = sign_receipts(KEY, payloads(count))[0]
    shorter = one.signature[: max(0, len(one.signature) - 1 - cut)]
    assert not is_genuine(Signed(payload=one.payload, signature=shorter))
    longer = one.signature + bytes(more)
    assert not is_genuine(Signed(payload=one.payload, signature=longer))


def test_a_tree_of_one_is_refused() -> None:
    head = KEY.sign(Label.RECEIPTS_HEAD, (1).to_bytes(2, "big") + hash_leaf(b"receipt"))
    assert not is_genuine(Signed(payload=b"receipt", signature=head + b"\0\1\0\0"))


def test_a_node_is_no_receipt() -> None:
    """What is above the leaves never passes for one: it is hashed for another purpose."""
    one = sign_receipts(KEY, payloads(4))[0]
    node = b"\x01" + hash_leaf(payloads(4)[0]) + hash_leaf(payloads(4)[1])
    path = one.signature[SIGNATURE_BYTES + 4 :]
    shorter = one.signature[:SIGNATURE_BYTES] + b"\0\2\0\0" + path[32:]
    assert not is_genuine(Signed(payload=node, signature=shorter))


def test_a_head_by_another_key_is_refused() -> None:
    assert not any(map(is_genuine, sign_receipts(SigningKey.generate(), payloads(3))))


def test_the_largest_tree_fits_into_headers() -> None:
    real = [b"%0500d" % number for number in range(MAX_TREE)]
    assert len(to_header(sign_receipts(KEY, real)[0])) < MAX_RECEIPT_BYTES
    for count in (0, MAX_TREE + 1):
        with pytest.raises(PromiseBrokenError):
            sign_receipts(KEY, payloads(count))
