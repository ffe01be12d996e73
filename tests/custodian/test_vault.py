"""Secrets at rest: the master key's file, wrapped keys that cannot stand in for one another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aigovtool.crypto.hpke import HpkeKey
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian import admission
from aigovtool.custodian.admission import ReleasePermit
from aigovtool.custodian.records import Custodian, Model
from aigovtool.custodian.vault import (
    MASTER_KEY_VARIABLE,
    Vault,
    new_master_key,
    read_master_key,
    write_master_key,
)
from aigovtool.errors import ConfigurationError, PromiseBrokenError, VerificationError
from aigovtool.wire.codec import decode
from aigovtool.wire.enrolment import Secrets
from tests.custodian.ledgers import BEGIN, RESULT, Bench, enrol_request, exhibit

KEY = bytes(range(32))


def model_of(vault: Vault, content_key: bytes, digest: bytes = bytes(32)) -> Model:
    return Model(
        digest=digest,
        name="m",
        version="1",
        manifest=b"",
        wrapped_key=vault.keep_content_key(content_key, digest),
        body_bytes=1,
        body_sha256=bytes(32),
        source_sha256=bytes(32),
        created=BEGIN,
    )


def permit_of(ledger: Bench, hpke: HpkeKey) -> ReleasePermit:
    loan = ledger.lend(1)
    made = ledger.admission.admit(
        loan.loan,
        enrol_request(loan.loan, SigningKey.generate()),
        RESULT,
        bytes(64),
        exhibit=exhibit(BEGIN),
    )
    return dataclasses.replace(made, hpke_key=hpke.public_key)


def test_master_key_file_round_trips(tmp_path: Path) -> None:
    key = new_master_key()
    path = tmp_path / "master.key"
    path.touch(0o600)
    path.write_text(write_master_key(key))
    assert read_master_key(path, {}) == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_master_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    path.write_text(write_master_key(KEY))
    path.chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        read_master_key(path, {})
    assert caught.value.reasons[0].code == "master_key.mode"


@pytest.mark.parametrize("text", [KEY.hex(), write_master_key(KEY), KEY.hex().upper() + "\n"])
def test_the_environment_gives_the_key_in_hex_or_base64url(text: str) -> None:
    assert read_master_key(Path("/nonexistent"), {MASTER_KEY_VARIABLE: text}) == KEY


@pytest.mark.parametrize("text", ["", "short", "z" * 64, KEY.hex() + "00", "\xff" * 43])
def test_what_is_no_master_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_master_key(Path("/nonexistent"), {MASTER_KEY_VARIABLE: text})
    assert not text or text not in str(caught.value)


def test_a_link_in_place_of_the_master_key_is_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.touch(0o600)
    real.write_text(write_master_key(KEY))
    (tmp_path / "master.key").symlink_to(real)
    with pytest.raises(ConfigurationError):
        read_master_key(tmp_path / "master.key", {})


def test_the_signing_key_opens_under_its_own_master_and_name_only() -> None:
    vault, key, other = Vault(KEY), SigningKey.generate(), SigningKey.generate()
    row = Custodian(
        public_key=key.public_key,
        wrapped_signing_key=vault.keep_signing_key(key),
        certificate_pem=b"",
        created=BEGIN,
    )
    assert vault.signing_key(row).seed() == key.seed()
    assert key.seed() not in row.wrapped_signing_key
    with pytest.raises(ConfigurationError, match="master key"):
        Vault(new_master_key()).signing_key(row)
    with pytest.raises(ConfigurationError):
        vault.signing_key(dataclasses.replace(row, public_key=other.public_key))
    flipped = bytearray(row.wrapped_signing_key)
    flipped[-1] ^= 1
    for damaged in (bytes(flipped), b"", row.wrapped_signing_key[:20]):
        with pytest.raises(ConfigurationError):
            vault.signing_key(dataclasses.replace(row, wrapped_signing_key=damaged))


def test_a_content_key_leaves_only_sealed_to_the_permits_key(ledger: Bench) -> None:
    vault, hpke = Vault(KEY), HpkeKey()
    permit = dataclasses.replace(permit_of(ledger, hpke), model_digest=bytes(32))
    sealed = vault.wrap(permit, model_of(vault, b"k" * 32))
    assert b"k" * 32 not in sealed
    secrets = hpke.open(sealed, Label.CONTENT_KEY_RELEASE, permit.context)
    assert decode(secrets, Secrets).content_key == b"k" * 32
    with pytest.raises(VerificationError):
        hpke.open(sealed, Label.CONTENT_KEY_RELEASE, b"another context")
    with pytest.raises(VerificationError):
        HpkeKey().open(sealed, Label.CONTENT_KEY_RELEASE, permit.context)


def test_one_models_key_cannot_stand_in_for_anothers(ledger: Bench) -> None:
    vault = Vault(KEY)
    permit = permit_of(ledger, HpkeKey())
    cheap, dear = model_of(vault, b"c" * 32, bytes([1]) * 32), model_of(vault, b"d" * 32)
    swapped = dataclasses.replace(cheap, wrapped_key=dear.wrapped_key)
    with pytest.raises(ConfigurationError):
        vault.wrap(dataclasses.replace(permit, model_digest=cheap.digest), swapped)
    with pytest.raises(PromiseBrokenError):
        vault.wrap(dataclasses.replace(permit, model_digest=cheap.digest), dear)


def test_a_permit_that_the_ledger_did_not_make_is_none(ledger: Bench) -> None:
    made = permit_of(ledger, HpkeKey())
    with pytest.raises(PromiseBrokenError):
        dataclasses.replace(made, proof=object())
    assert "_MADE_HERE" in vars(admission)
