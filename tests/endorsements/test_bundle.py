"""Bundles: what goes in comes out, what is changed on the way does not, and the command line."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.verify import verify
from aigovtool.cli.attestation_bundle import bundle as command
from aigovtool.endorsements.bundle import (
    MAX_BUNDLE_BYTES,
    Bundle,
    make_bundle,
    read_bundle,
    write_bundle,
)
from aigovtool.endorsements.spans import contains
from aigovtool.errors import AIGovToolError, MalformedError, TooLargeError, VerificationError
from tests.endorsements.stand_in import all_cases, parts_of, recorded
from tests.shared_data import shared

CASES = all_cases()


def outcome(evidence: Evidence, endorsements: Endorsements, now: datetime) -> object:
    try:
        return verify(evidence, endorsements, now=now)
    except AIGovToolError as error:
        return error.reasons


def judge(data: bytes, now: datetime) -> object:
    opened = read_bundle(data)
    return verify(opened.evidence, opened.endorsements, now=now)


@pytest.mark.parametrize(("vector", "case"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_bundle_of_any_vector_verifies_as_its_parts_do(vector: Any, case: Any) -> None:
    evidence, endorsements = parts_of(vector, case)
    expected = outcome(evidence, endorsements, case.verification_time)
    try:
        data = write_bundle(make_bundle(evidence, endorsements))
    except MalformedError:
        assert isinstance(expected, tuple)  # what cannot be packed could not be verified either
        return
    opened = read_bundle(data)
    assert (opened.evidence, opened.endorsements) == (evidence, endorsements)
    assert write_bundle(opened) == data
    assert outcome(opened.evidence, opened.endorsements, case.verification_time) == expected


@pytest.mark.parametrize(
    ("vector", "start", "end"),
    [
        ("tdx/v4-up-to-date", "2025-06-19T10:32:27+00:00", "2025-07-19T10:00:35+00:00"),
        ("nitro/production", None, None),
        ("snp/milan-v3", None, None),
    ],
)
def test_the_span_is_the_time_in_which_it_verifies(
    vector: str, start: str | None, end: str | None
) -> None:
    evidence, endorsements, now = recorded(vector)
    span = make_bundle(evidence, endorsements).span
    assert span is not None
    assert contains(span, now)
    if start is not None:
        assert (span.start.isoformat(), span.end.isoformat()) == (start, end)
    second = timedelta(seconds=1)  # whether the last second counts, verifiers do not agree
    verify(evidence, endorsements, now=span.end - second)
    verify(evidence, endorsements, now=span.start)
    with pytest.raises(VerificationError):
        verify(evidence, endorsements, now=span.end + second)
    with pytest.raises(VerificationError):
        verify(evidence, endorsements, now=span.start - second)


def test_documents_that_never_count_together_have_no_span() -> None:
    evidence, endorsements, _ = recorded("nvidia/h100-full")
    made = make_bundle(evidence, endorsements)
    assert made.span is None
    assert json.loads(write_bundle(made))["valid_from"] is None
    assert read_bundle(write_bundle(made)) == made


def small() -> Bundle:
    evidence, endorsements, _ = recorded("nitro/production")
    return make_bundle(evidence, endorsements, policy=b"version = 1\n")


def test_no_byte_can_be_changed_added_or_lost() -> None:
    data = write_bundle(small())
    for at in range(len(data)):
        for changed in (
            data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
            data[:at] + data[at + 1 :],
        ):
            with pytest.raises(MalformedError):
                read_bundle(changed)
    for changed in (data + b" ", b" " + data, data + data, b"", data + b"\0"):
        with pytest.raises(MalformedError):
            read_bundle(changed)


@pytest.mark.parametrize(
    ("vector", "document"),
    [
        ("nitro/production", "document"),
        ("tdx/v4-up-to-date", "quote"),
        ("sgx/v3-config-and-swhardening", "quote"),
        ("snp/milan-v3", "report"),
    ],
)
def test_an_attacker_who_writes_the_digest_anew_is_refused(vector: str, document: str) -> None:
    evidence, endorsements, now = recorded(vector)
    body = evidence.document(document)
    for at in range(0, len(body), max(1, len(body) // 60)):
        changed = body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1 :]
        forged = replace(evidence, documents={**evidence.documents, document: changed})
        with pytest.raises((MalformedError, VerificationError)):
            judge(write_bundle(make_bundle(forged, endorsements)), now)


def forge(**change: Any) -> bytes:
    """A bundle with members changed, and the digest over what it then says."""
    members = json.loads(write_bundle(small())) | change | {"digest": ""}
    digest = hashlib.sha256(_canonical(members)).hexdigest()
    return _canonical(members | {"digest": digest})


def _canonical(members: dict[str, Any]) -> bytes:
    return json.dumps(members, sort_keys=True, separators=(",", ":")).encode()


def test_the_forger_of_these_tests_knows_the_encoding() -> None:
    assert forge() == write_bundle(small())


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "zip"},
        {"tee": "sgx2"},
        {"more": 1},
        {"valid_until": "2099-01-01T00:00:00Z"},
        {"valid_from": None, "valid_until": None},
        {"evidence": {}},
        {"evidence": {"document": "%%%"}},
        {"evidence": {"document": ""}},
        {"evidence": {"a b": ""}},
        {"evidence": {"": ""}},
        {"evidence": {f"name{n}": "" for n in range(300)}},
        {"evidence": {"document": base64.b64encode(bytes(2 << 20)).decode()}},
        {"endorsements": {"ca_chain": "AAAA"}},
        {"policy": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_no_bundle_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        judge(forge(**change), datetime.now(UTC))


def test_a_member_cannot_come_twice() -> None:
    data = write_bundle(small())
    twice = data.replace(b'"version":1}', b'"version":1,"version":1}')
    with pytest.raises(MalformedError, match="one encoding"):
        read_bundle(twice)


def test_base64_has_one_form() -> None:
    made = make_bundle(
        Evidence(tee=Tee.NITRO, documents=small().evidence.documents),
        Endorsements(tee=Tee.NITRO),
        policy=b"a",
    )
    data = write_bundle(made)
    assert b'"policy":"YQ=="' in data
    for other in (b"YR==", b"YQ=", b"YQ", b"YQ==\\n"):
        with pytest.raises(MalformedError):
            read_bundle(data.replace(b"YQ==", other))


def test_a_huge_file_is_not_read() -> None:
    with pytest.raises(TooLargeError):
        read_bundle(b" " * (MAX_BUNDLE_BYTES + 1))


def test_a_deep_file_is_malformed() -> None:
    with pytest.raises(MalformedError):
        read_bundle(b'{"evidence":' + b"[" * 100_000)


@given(st.binary(max_size=200))
def test_noise_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        read_bundle(data)


def test_parts_of_different_kinds_are_not_packed() -> None:
    evidence, _, _ = recorded("nitro/production")
    with pytest.raises(MalformedError, match="different kinds"):
        make_bundle(evidence, Endorsements(tee=Tee.TDX))


# The command line

TDX = ("evidence", "tdx", "v4-up-to-date")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def create(output: Path, *more: object, folder: tuple[str, ...] = TDX, tee: str = "tdx") -> Result:
    return run("create", "--tee", tee, "--evidence", shared(*folder), "-o", output, *more)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "tdx.bundle"
    result = create(path)
    assert result.exit_code == 0, result.output
    return path


AT = ("--time", "2025-07-04T10:00:00Z")


def test_create_then_verify(made: Path) -> None:
    result = run("verify", made, *AT)
    assert result.exit_code == 0, result.output
    assert "UpToDate" in result.stdout
    assert "the strict policy" in result.stderr
    found = json.loads(run("verify", made, *AT, "--json").stdout)
    assert found["accepted"] is True
    assert found["valid_until"] == "2025-07-19T10:00:35+00:00"


def test_the_same_parts_make_the_same_file(made: Path, tmp_path: Path) -> None:
    create(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == made.read_bytes()


def test_out_of_its_time_it_is_refused(made: Path) -> None:
    result = run("verify", made, "--time", "2025-10-20T22:40:00Z")
    assert result.exit_code == 1
    assert "not current" in result.stderr


def test_a_damaged_file_is_malformed(made: Path) -> None:
    data = bytearray(made.read_bytes())
    data[1000] ^= 1
    made.write_bytes(data)
    result = run("verify", made, *AT)
    assert result.exit_code == 2


def test_a_policy_goes_along_and_ones_own_goes_first(tmp_path: Path) -> None:
    from aigovtool.attestation.policy import Policy, write_policy
    from aigovtool.attestation.strict import strict_policy

    ours, theirs = tmp_path / "ours.toml", tmp_path / "theirs.toml"
    lax = Policy(accept=(strict_policy(Tee.TDX),), custodian=None)
    theirs.write_text(write_policy(lax))
    ours.write_text(write_policy(lax).replace('mr_td = "any"', f'mr_td = ["{"00" * 48}"]'))
    path = tmp_path / "bundle"
    assert create(path, "--policy", theirs).exit_code == 0
    inside = run("verify", path, *AT)
    assert inside.exit_code == 0, inside.output
    assert "the policy inside the bundle" in inside.stderr
    result = run("verify", path, *AT, "--policy", ours)
    assert result.exit_code == 1
    assert "MRTD" in result.stderr


def test_what_does_not_verify_is_not_packed(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    wrong = create(path, folder=("evidence", "snp", "milan-v2-wrong-vcek"), tee="snp")
    assert wrong.exit_code == 1
    missing = create(path, folder=("evidence", "snp", "genoa-v3-no-vcek"), tee="snp")
    assert missing.exit_code == 2
    assert not path.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--pccs", "http://127.0.0.1:1"), "--pccs and --cache"),
        (("--policy", shared("evidence", "manifest.json")), "not TOML"),
    ],
)
def test_misuse_is_told(tmp_path: Path, more: tuple[object, ...], words: str) -> None:
    path = tmp_path / "bundle"
    result = create(path, *more)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    assert create(tmp_path / "no" / "such" / "folder").exit_code == 2


async def test_fetch_visits_the_pccs(tmp_path: Path) -> None:
    import asyncio

    from tests.endorsements.stand_in import Vendor, running, serve_collateral

    async with running(Vendor()) as vendor:
        evidence, endorsements, _ = recorded("tdx/v4-up-to-date")
        serve_collateral(vendor, "tdx", endorsements.documents)
        quote = tmp_path / "quote.bin"
        quote.write_bytes(evidence.document("quote"))
        arguments = ("create", "--tee", "tdx", "--evidence", quote, "-o", tmp_path / "b")
        fetched = await asyncio.to_thread(
            run, *arguments, "--fetch", "--pccs", vendor.url, "--cache", tmp_path / "cache"
        )
        # Recorded collateral has expired by now, and what has expired is not taken.
        assert fetched.exit_code == 3, fetched.output
        assert "nothing that is valid at this time" in fetched.stderr
        assert len(vendor.asked) == 4
