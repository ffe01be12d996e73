"""The tree against its definition in RFC 6962, and against the vectors of its implementations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigovtool.errors import AIGovToolError, MalformedError, PromiseBrokenError, VerificationError
from aigovtool.tlog import tree
from aigovtool.tlog.tree import (
    EMPTY_ROOT,
    Edge,
    consistency_proof,
    hash_leaf,
    inclusion_proof,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from tests.tlog import reference

# The eight entries and roots by which implementations of RFC 6962 test themselves
# (google/certificate-transparency merkle_tree_test, transparency-dev/merkle).
ENTRIES = [
    bytes.fromhex(each)
    for each in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def subtrees_of(entries: list[bytes]) -> tree.Subtrees:
    return lambda level, index: reference.mth(entries[index << level : (index + 1) << level])


def some(size: int) -> list[bytes]:
    return [f"entry {at}".encode() for at in range(size)]


@pytest.mark.parametrize("size", range(9))
def test_the_published_roots_come_out(size: int) -> None:
    edge = Edge()
    for each in ENTRIES[:size]:
        edge.add(hash_leaf(each))
    assert edge.root().hex() == ROOTS[size]
    assert tree_root(size, subtrees_of(ENTRIES)).hex() == ROOTS[size]


def test_the_published_paths_come_out() -> None:
    # PATH(5, D[8]) of the same vectors
    came = inclusion_proof(5, 8, subtrees_of(ENTRIES))
    assert [each.hex() for each in came] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_every_proof_of_every_small_tree_is_the_definitions_and_holds() -> None:
    for size in range(1, 36):
        entries = some(size)
        subtrees, root = subtrees_of(entries), reference.mth(entries)
        for index in range(size):
            proof = inclusion_proof(index, size, subtrees)
            assert proof == reference.path(index, entries)
            verify_inclusion(hash_leaf(entries[index]), index, size, root, proof)
        for old in range(size + 1):
            proof = consistency_proof(old, size, subtrees)
            assert proof == reference.proof(old, entries)
            verify_consistency(old, reference.mth(entries[:old]), size, root, proof)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_proof_holds_for_another_leaf_place_size_or_root(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 40))
    index = data.draw(st.integers(0, size - 1))
    entries = some(size)
    root, leaf = reference.mth(entries), hash_leaf(entries[index])
    proof = reference.path(index, entries)
    lies = [
        (hash_leaf(b"another"), index, size, root, proof),
        (leaf, index, size, hash_leaf(b"another"), proof),
        (leaf, index, size, root, [*proof, root]),
        (leaf, -1, size, root, proof),
        (leaf, size, size, root, proof),
    ]
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        lies.append((leaf, index, size, root, [*proof[:at], leaf[::-1], *proof[at + 1 :]]))
        lies.append((leaf, index, size, root, proof[:-1]))
        lies.append((leaf, index, size, root, [*proof[:at], proof[at][:-1], *proof[at + 1 :]]))
        lies.append((leaf, index ^ 1, size, root, proof))
    for lie in lies:
        with pytest.raises(VerificationError):
            verify_inclusion(*lie)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_proof_makes_two_histories_one(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 40))
    old = data.draw(st.integers(1, size))
    at = data.draw(st.integers(0, old - 1))
    entries = some(size)
    rewritten = [*entries[:at], b"rewritten", *entries[at + 1 :]]
    proof = reference.proof(old, entries)
    for lie in (
        (old, reference.mth(rewritten[:old]), size, reference.mth(entries), proof),
        (old, reference.mth(entries[:old]), size, reference.mth(rewritten), proof),
        (
            old,
            reference.mth(entries[:old]),
            size,
            reference.mth(rewritten),
            reference.proof(old, rewritten),
        ),
        (old, reference.mth(entries[:old]), size, reference.mth(entries), [*proof, b"\0" * 32]),
        (size + 1, reference.mth(some(size + 1)), size, reference.mth(entries), proof),
    ):
        with pytest.raises(VerificationError):
            verify_consistency(*lie)
    if proof:
        with pytest.raises(VerificationError):
            verify_consistency(
                old, reference.mth(entries[:old]), size, reference.mth(entries), proof[:-1]
            )


def test_an_empty_history_is_the_beginning_of_every_log_and_no_other_root_is() -> None:
    root = reference.mth(some(3))
    verify_consistency(0, EMPTY_ROOT, 3, root, [])
    with pytest.raises(VerificationError, match="first 0 entries"):
        verify_consistency(0, root, 3, root, [])
    with pytest.raises(VerificationError, match="none are needed"):
        verify_consistency(0, EMPTY_ROOT, 3, root, [root])


@given(st.integers(0, 300))
def test_an_edge_goes_on_from_where_it_was_kept(size: int) -> None:
    edge = Edge.of(size, subtrees_of(some(size)))
    again = Edge(edge.size, edge.hashes)
    again.add(hash_leaf(f"entry {size}".encode()))
    assert again.root() == reference.mth(some(size + 1))
    assert edge.root() == reference.mth(some(size))  # the kept one did not change


@pytest.mark.parametrize(
    ("size", "hashes"), [(1, []), (0, [b"\0" * 32]), (3, [b"\0" * 32]), (1, [b"\0"]), (-1, [])]
)
def test_what_is_no_edge_is_refused(size: int, hashes: list[bytes]) -> None:
    with pytest.raises(MalformedError):
        Edge(size, hashes)


def test_a_proof_of_what_is_not_there_is_our_own_mistake() -> None:
    for ask in (
        lambda: inclusion_proof(3, 3, subtrees_of([])),
        lambda: consistency_proof(4, 3, subtrees_of([])),
    ):
        with pytest.raises(PromiseBrokenError):
            ask()
    assert issubclass(PromiseBrokenError, AIGovToolError)
