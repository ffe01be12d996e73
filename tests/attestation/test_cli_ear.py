"""``aigovtool attestation verify --ear`` and ``attestation ear``: tokens written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aigovtool.attestation.dcap.collateral import REQUIRED_DOCUMENTS, documents_to_json
from aigovtool.attestation.policy import write_policy
from aigovtool.cli import main
from aigovtool.crypto.signing import SigningKey, format_public_key
from tests.attestation.simulation import MEASUREMENT, NOW, honest_evidence, platform, policy
from tests.shared_data import shared

KEY = SigningKey.from_seed(bytes(range(32)))
OTHER_KEY = SigningKey.from_seed(bytes(32))
NONCE = "00112233445566778899aabbccddeeff"
FORMS = ["jwt", "cwt"]


def run(*arguments: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["attestation", *map(str, arguments)], input=stdin)


def pem(key: SigningKey | X25519PrivateKey) -> bytes:
    private = key.x509_key() if isinstance(key, SigningKey) else key
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "verifier.key"
    path.write_bytes(pem(KEY))
    path.chmod(0o600)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Honest simulated evidence, with the policy that accepts it."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "quote.bin").write_bytes(honest_evidence().document("quote"))
    documents = platform().endorsements(NOW).documents
    (folder / "collateral.json").write_text(
        documents_to_json({name: documents[name] for name in REQUIRED_DOCUMENTS})
    )
    (folder / "root_ca.der").write_bytes(platform().root_der)
    (folder / "manifest.toml").write_text(write_policy(policy()))
    return folder


def issue(folder: Path, key_file: Path, token: Path, form: str, *more: object) -> Result:
    return run(
        *("verify", "--tee", "simulated", "--evidence", folder, "--time", NOW.isoformat()),
        *("--policy", folder / "manifest.toml", "--ear", form, "--ear-key", key_file),
        *("--ear-output", token, *more),
    )


def read(token: Path | str, *more: object, key: SigningKey = KEY, stdin: bytes = b"") -> Result:
    public = format_public_key(key.public_key)
    when = ("--time", NOW.isoformat())
    return run("ear", "verify", token, "--public-key", public, *when, *more, stdin=stdin)


@pytest.mark.parametrize("form", FORMS)
def test_an_accepted_verdict_as_a_token(
    folder: Path, key_file: Path, tmp_path: Path, form: str
) -> None:
    token = tmp_path / "ear"

    issued = issue(folder, key_file, token, form, "--ear-nonce", NONCE, "--json")
    came = read(token, "--nonce", NONCE, "--json")

    assert issued.exit_code == 0, issued.stderr
    assert json.loads(issued.stdout)["accepted"] is True
    assert format_public_key(KEY.public_key) in issued.stderr
    assert came.exit_code == 0, came.stderr
    appraisal = json.loads(came.stdout)["submods"]["simulated"]
    assert appraisal["ear.status"] == "contraindicated"  # it protects nothing from the owner
    assert appraisal["ear.aigovtool.verdict"]["measurement"] == MEASUREMENT.mr_td.hex()
    page = read(token)
    assert page.exit_code == 0
    assert MEASUREMENT.mr_td.hex() in page.stdout
    assert "protects nothing" in page.stderr


@pytest.mark.parametrize("form", FORMS)
def test_a_refusal_is_a_token_too_and_no_success(
    folder: Path, key_file: Path, tmp_path: Path, form: str
) -> None:
    manifest = folder / "manifest.toml"
    manifest.write_text(manifest.read_text().replace(MEASUREMENT.mr_td.hex(), "ab" * 48))
    token = tmp_path / "ear"

    issued = issue(folder, key_file, token, form)
    came = read(token, "--json")

    assert issued.exit_code == 1
    assert came.exit_code == 1
    appraisal = json.loads(came.stdout)["submods"]["simulated"]
    assert appraisal["ear.status"] == "contraindicated"
    verdict = appraisal["ear.aigovtool.verdict"]
    assert (verdict["accepted"], verdict["genuine"]) == (False, True)
    assert "tdx.mr_td" in {reason["code"] for reason in verdict["reasons"]}
    page = read(token)
    assert page.exit_code == 1
    assert "ab" * 48 in page.stderr


def test_evidence_that_is_not_genuine_is_told_so(
    folder: Path, key_file: Path, tmp_path: Path
) -> None:
    quote = bytearray((folder / "quote.bin").read_bytes())
    quote[200] ^= 1
    (folder / "quote.bin").write_bytes(quote)
    token = tmp_path / "ear"

    assert issue(folder, key_file, token, "jwt").exit_code == 1

    came = read(token, "--json")
    assert came.exit_code == 1
    (appraisal,) = json.loads(came.stdout)["submods"].values()
    assert appraisal["ear.aigovtool.verdict"]["genuine"] is False


def test_evidence_that_cannot_be_read_gives_no_token(
    folder: Path, key_file: Path, tmp_path: Path
) -> None:
    (folder / "quote.bin").write_bytes(b"not a quote")
    token = tmp_path / "ear"

    assert issue(folder, key_file, token, "jwt").exit_code == 2
    assert not token.exists()


def test_without_a_policy_file_the_token_names_the_strict_policy(
    key_file: Path, tmp_path: Path
) -> None:
    tdx = shared("evidence") / "tdx" / "v4-up-to-date"
    token, time = tmp_path / "ear", "2025-07-04T10:00:00Z"

    issued = run(
        *("verify", "--tee", "tdx", "--evidence", tdx, "--time", time),
        *("--ear", "jwt", "--ear-key", key_file, "--ear-output", token),
    )
    public = format_public_key(KEY.public_key)
    came = run("ear", "verify", token, "--public-key", public, "--time", time, "--json")

    assert issued.exit_code == 0, issued.stderr
    assert came.exit_code == 0, came.stderr
    appraisal = json.loads(came.stdout)["submods"]["tdx"]
    assert appraisal["ear.status"] == "warning"  # the strict policy leaves measurements free
    assert appraisal["ear.appraisal-policy-id"].startswith("ni:///sha-256;")


class TestKeys:
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
    def test_a_key_that_others_may_read_signs_nothing(
        self, folder: Path, key_file: Path, tmp_path: Path, mode: int
    ) -> None:
        key_file.chmod(mode)
        token = tmp_path / "ear"

        result = issue(folder, key_file, token, "jwt")

        assert result.exit_code == 2
        assert f"{mode:04o}" in result.stderr
        assert not token.exists()

    @pytest.mark.parametrize(
        "content", [b"", b"seed", pem(KEY)[:40], pem(X25519PrivateKey.generate())]
    )
    def test_a_file_without_an_ed25519_key(
        self, folder: Path, key_file: Path, tmp_path: Path, content: bytes
    ) -> None:
        key_file.write_bytes(content)
        token = tmp_path / "ear"

        assert issue(folder, key_file, token, "jwt").exit_code == 2
        assert not token.exists()

    @pytest.mark.parametrize(
        "options", [("--ear", "jwt"), ("--ear-nonce", NONCE), ("--ear-output", "ear")]
    )
    def test_half_of_the_options(self, folder: Path, options: tuple[str, ...]) -> None:
        result = run("verify", "--tee", "simulated", "--evidence", folder, *options)
        assert result.exit_code == 2
        assert result.stdout == ""


class TestForged:
    @pytest.fixture
    def token(self, folder: Path, key_file: Path, tmp_path: Path) -> Path:
        token = tmp_path / "ear"
        assert issue(folder, key_file, token, "jwt", "--ear-nonce", NONCE).exit_code == 0
        return token

    def test_by_another_verifier(self, token: Path) -> None:
        result = read(token, key=OTHER_KEY)
        assert (result.exit_code, result.stdout) == (1, "")

    def test_changed_on_its_way(self, token: Path) -> None:
        head, body, signature = token.read_bytes().split(b".")
        changed = b"A" if body[40:41] != b"A" else b"B"
        token.write_bytes(b".".join([head, body[:40] + changed + body[41:], signature]))
        assert read(token).exit_code == 1

    def test_an_answer_to_another_question(self, token: Path) -> None:
        assert read(token, "--nonce", NONCE).exit_code == 0
        assert read(token, "--nonce", "ff" * 16).exit_code == 1

    def test_expired(self, token: Path) -> None:
        public = format_public_key(KEY.public_key)
        assert run("ear", "verify", token, "--public-key", public).exit_code == 1

    def test_no_token_at_all(self, token: Path) -> None:
        token.write_bytes(b"x" * (300 << 10))
        assert read(token).exit_code == 2
        assert read("-", stdin=b"not a token").exit_code == 2

    def test_from_a_terminal_with_its_newline(self, token: Path) -> None:
        assert read("-", stdin=token.read_bytes() + b"\n").exit_code == 0
        assert read("-", stdin=token.read_bytes() + b"\n\n").exit_code == 2
