"""``aigovtool attestation`` on recorded evidence: exit codes, JSON, every case of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aigovtool.attestation.dcap.collateral import REQUIRED_DOCUMENTS, documents_to_json
from aigovtool.attestation.policy import parse_policy, write_policy
from aigovtool.cli import main
from tests.attestation.simulation import (
    MEASUREMENT,
    NOW,
    honest_evidence,
    platform,
    policy,
)
from tests.shared_data import shared

EVIDENCE = shared("evidence")
TDX = EVIDENCE / "tdx" / "v4-up-to-date"
TDX_TIME = "2025-07-04T10:00:00Z"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["attestation", *map(str, arguments)])


def verify(tee: str, path: Path, time: str, *more: object) -> Result:
    return run("verify", "--tee", tee, "--evidence", path, "--time", time, *more)


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    result = run("vectors", EVIDENCE, "--json")
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def expected_cases() -> list[tuple[str, dict[str, Any]]]:
    manifest = json.loads((EVIDENCE / "manifest.json").read_text())
    return [(vector["id"], case) for vector in manifest["vectors"] for case in vector["cases"]]


@pytest.mark.parametrize("number", range(len(expected_cases())))
def test_every_recorded_case_comes_to_what_is_expected(
    cases: list[dict[str, Any]], number: int
) -> None:
    (vector, case), came = expected_cases()[number], cases[number]
    expected = case["expected"]

    assert list(came) == [
        "id",
        "case",
        "authentic",
        "tcb_status",
        "strict_policy",
        "reasons",
        "ok",
    ]
    assert (came["id"], came["case"]) == (vector, case["name"])
    assert came["authentic"] is expected["authentic"]
    assert came["tcb_status"] == expected.get("tcb_status")
    assert came["strict_policy"] == expected["strict_policy"]
    assert bool(came["reasons"]) == (came["strict_policy"] == "reject")
    assert came["ok"] is True


def test_expectations_are_not_what_verdicts_are_made_of(
    tmp_path: Path, cases: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "evidence"
    shutil.copytree(EVIDENCE, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for vector in manifest["vectors"]:
        for case in vector["cases"]:
            case["expected"] = {
                "authentic": not case["expected"]["authentic"],
                "strict_policy": "accept",
                "reasons": [],
            }
    (folder / "manifest.json").write_text(json.dumps(manifest))

    result = run("vectors", folder, "--json")

    assert result.exit_code == 1
    came = json.loads(result.stdout)
    assert [{**case, "ok": True} for case in came] == cases
    assert not any(case["ok"] for case in came)


@pytest.mark.parametrize("field", ["tcb_date", "advisories", "tcb_evaluation_data_number"])
def test_a_wrong_expectation_of_any_field_is_seen(tmp_path: Path, field: str) -> None:
    folder = tmp_path / "evidence"
    shutil.copytree(TDX, folder / "tdx" / TDX.name)
    manifest = json.loads((EVIDENCE / "manifest.json").read_text())
    vector = next(one for one in manifest["vectors"] if one["id"] == "tdx/v4-up-to-date")
    vector["cases"][0]["expected"][field] = 7
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "vectors": [vector]}))

    assert [case["ok"] for case in json.loads(run("vectors", folder, "--json").stdout)] == [
        False,
        True,
        True,
    ]


def test_vectors_for_people() -> None:
    result = run("vectors", EVIDENCE)

    assert result.exit_code == 0
    assert "57 of 57 cases as expected" in result.stderr
    assert "tdx/v4-gcp-2026" in result.stdout


@pytest.mark.parametrize(
    ("manifest", "code"), [("{}", 2), ('{"version": 2, "vectors": []}', 2), ("[", 2)]
)
def test_a_folder_without_vectors(tmp_path: Path, manifest: str, code: int) -> None:
    (tmp_path / "manifest.json").write_text(manifest)

    assert run("vectors", tmp_path).exit_code == code


def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "evidence"
    (folder / "tdx" / "x").mkdir(parents=True)
    vector = {
        "id": "tdx/x",
        "tee": "TDX",
        "files": {"quote": "../../../secret"},
        "cases": [{"name": "a", "verification_time": TDX_TIME, "expected": {}}],
    }
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "vectors": [vector]}))

    assert run("vectors", folder).exit_code == 2


@pytest.mark.parametrize(
    ("tee", "name", "time"),
    [
        ("tdx", "tdx/v4-event-log", "2026-03-05T10:00:00Z"),
        ("tdx", "tdx/v4-gcp-2026", "2026-07-15T08:00:00Z"),
        ("snp", "snp/milan-v2", "2023-02-23T17:00:00Z"),
        ("snp", "snp/milan-v3-vlek", "2025-01-09T22:00:00Z"),
        ("nitro", "nitro/production", "2025-12-25T13:15:37Z"),
        ("azure-snp", "azure-snp/genoa", "2025-02-23T02:00:00Z"),
        ("azure-tdx", "azure-tdx/ak-chain", "2026-06-23T11:00:00Z"),
    ],
)
def test_single_vectors_by_their_folder(tee: str, name: str, time: str) -> None:
    result = verify(tee, EVIDENCE / name, time, "--json")

    assert result.exit_code == 0, result.stderr
    came = json.loads(result.stdout)
    assert (came["accepted"], came["authentic"], came["tee"]) == (True, True, tee)
    assert came["measurement"]
    assert came["warnings"]


@pytest.mark.parametrize(
    ("tee", "name", "time", "code"),
    [
        ("sgx", "sgx/v3-debug", "2025-07-04T10:00:00Z", "sgx.debug"),
        ("tpm2", "tpm2/gce-shielded-vm", "2021-01-01T00:00:00Z", "tpm2.ak"),
        ("nvidia", "nvidia/h100-multi", "2025-09-01T00:00:00Z", "nvidia.rim_missing"),
        ("composite", "composite/tdx-h100", "2026-03-11T04:00:00Z", "nvidia.rim_missing"),
        ("nitro", "nitro/debug", "2025-12-25T08:20:46Z", "nitro.debug"),
    ],
)
def test_refused_by_the_strict_policy(tee: str, name: str, time: str, code: str) -> None:
    result = verify(tee, EVIDENCE / name, time, "--json")

    assert result.exit_code == 1
    came = json.loads(result.stdout)
    assert (came["accepted"], came["authentic"]) == (False, True)
    assert code in {reason["code"] for reason in came["reasons"]}


def test_file_and_endorsements_given_apart() -> None:
    result = verify("tdx", TDX / "quote.bin", TDX_TIME, "--endorsements", TDX / "collateral.json")

    assert result.exit_code == 0
    assert "UpToDate" in result.stdout
    assert "any MRTD" in result.stderr


def test_time_makes_the_difference() -> None:
    after = verify("tdx", TDX, "2025-10-20T22:40:00Z", "--json")

    assert after.exit_code == 1
    came = json.loads(after.stdout)
    assert (came["accepted"], came["authentic"], came["claims"]) == (False, False, None)
    assert came["reasons"][0]["code"] == "crl.expired"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tee", "tdx", "--evidence", "nowhere"),
        ("--tee", "sev", "--evidence", TDX),
        ("--tee", "tdx", "--evidence", TDX, "--time", "yesterday"),
        ("--tee", "tdx", "--evidence", TDX, "--time", "2025-07-04T10:00:00"),
        ("--tee", "tdx", "--evidence", TDX / "quote.bin"),
        ("--tee", "tdx", "--evidence", TDX / "collateral.json"),
        ("--tee", "nitro", "--evidence", TDX / "quote.bin"),
        ("--tee", "snp", "--evidence", TDX),
        ("--tee", "tdx", "--evidence", TDX, "--policy", TDX / "collateral.json"),
        ("--tee", "tdx", "--evidence", TDX, "--endorsements", TDX / "quote.bin"),
        ("--tee", "simulated", "--evidence", TDX),
        ("--evidence", TDX),
    ],
)
def test_malformed_or_misused(arguments: tuple[object, ...]) -> None:
    result = run("verify", *arguments)

    assert result.exit_code == 2
    assert result.stderr
    assert result.stdout == ""


def test_policy_from_evidence_then_verify_and_diff(tmp_path: Path) -> None:
    written = run("policy", "from-evidence", "--tee", "tdx", "--evidence", TDX, "--time", TDX_TIME)
    assert written.exit_code == 0
    path = tmp_path / "manifest.toml"
    path.write_text(written.stdout)

    accepted = verify("tdx", TDX, TDX_TIME, "--policy", path, "--json")
    assert accepted.exit_code == 0
    assert json.loads(accepted.stdout)["warnings"] == []

    other = ("--tee", "tdx", "--evidence", EVIDENCE / "tdx" / "v4-event-log")
    when = ("--time", "2026-03-05T10:00:00Z")
    differs = run("diff", *other, *when, "--policy", path, "--json")
    assert differs.exit_code == 1
    (difference,) = json.loads(differs.stdout)
    assert difference["accepts"] is False
    assert "tdx.mr_td" in {reason["code"] for reason in difference["reasons"]}
    assert "tdx.mr_td" in run("diff", *other, *when, "--policy", path).stdout
    same = run("diff", "--tee", "tdx", "--evidence", TDX, "--time", TDX_TIME, "--policy", path)
    assert same.exit_code == 0
    assert "accepts" in same.stdout


@pytest.mark.parametrize(
    ("tee", "name", "time"),
    [
        ("sgx", "sgx/v3-config-and-swhardening", "2025-07-04T10:00:00Z"),
        ("tdx", "tdx/v5-up-to-date", "2026-02-14T00:00:00Z"),
        ("snp", "snp/turin-v5-fmc", "2026-07-28T08:00:00Z"),
        ("nitro", "nitro/production", "2025-12-25T13:15:37Z"),
        ("azure-snp", "azure-snp/milan", "2025-02-27T16:00:00Z"),
        ("azure-tdx", "azure-tdx/ak-chain", "2026-06-23T11:00:00Z"),
        ("tpm2", "tpm2/gce-shielded-vm", "2021-01-01T00:00:00Z"),
        ("nvidia", "nvidia/h100-multi", "2025-09-01T00:00:00Z"),
        ("composite", "composite/tdx-h100", "2026-03-11T04:00:00Z"),
    ],
)
def test_a_policy_proposed_from_evidence_of_every_kind(
    tmp_path: Path, tee: str, name: str, time: str
) -> None:
    where = ("--tee", tee, "--evidence", EVIDENCE / name, "--time", time)
    written = run("policy", "from-evidence", *where)
    assert written.exit_code == 0, written.stderr
    path = tmp_path / "manifest.toml"
    path.write_text(written.stdout)

    result = run("verify", *where, "--policy", path, "--json")

    came = json.loads(result.stdout)
    faults = {reason["code"] for reason in came["reasons"]}
    # What is wrong with the platform itself is not proposed; everything else fits.
    assert faults <= {"tcb.status"}
    assert came["accepted"] == (not faults)


def test_explain_shows_whole_digests() -> None:
    arguments = ("--tee", "tdx", "--evidence", TDX, "--time", TDX_TIME)

    page = run("explain", *arguments)
    claims = json.loads(run("explain", *arguments, "--json").stdout)

    assert page.exit_code == 0
    assert claims["report"]["mr_td"] in page.stdout
    assert claims["platform"]["ppid"] in page.stdout


def test_import_of_an_original_manifest(tmp_path: Path) -> None:
    original = tmp_path / "manifest.toml"
    original.write_text(
        f'mr_enclave = "{"ab" * 32}"\nallow_debug = false\n'
        'attributes_flags_hex = "0x4"\nattributes_mask_flags_hex = "0xfffffffffffffffd"\n'
        'attributes_xfrm_hex = "0x3"\nattributes_mask_xfrm_hex = "0xffffffffffffff1b"\n'
        'misc_select_hex = "0x0"\nmisc_mask_hex = "0xffffffff"\n'
    )

    result = run("policy", "import", original)

    assert result.exit_code == 0
    (alternative,) = parse_policy(result.stdout.encode()).accept
    assert alternative.mr_enclave == ("ab" * 32,)  # type: ignore[attr-defined]
    assert run("policy", "import", TDX / "collateral.json").exit_code == 2


class TestSimulated:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "quote.bin").write_bytes(honest_evidence().document("quote"))
        documents = platform().endorsements(NOW).documents
        (tmp_path / "collateral.json").write_text(
            documents_to_json({name: documents[name] for name in REQUIRED_DOCUMENTS})
        )
        (tmp_path / "root_ca.der").write_bytes(platform().root_der)
        (tmp_path / "manifest.toml").write_text(write_policy(policy()))
        return tmp_path

    def test_accepted_loudly(self, folder: Path) -> None:
        result = verify("simulated", folder, NOW.isoformat(), "--policy", folder / "manifest.toml")

        assert result.exit_code == 0, result.stderr
        assert MEASUREMENT.mr_td.hex() in result.stdout
        assert "protects nothing" in result.stderr

    def test_refused_without_its_root_in_the_policy(self, folder: Path) -> None:
        text = (folder / "manifest.toml").read_text()
        fingerprint = platform().root_sha256.hex()
        (folder / "manifest.toml").write_text(text.replace(fingerprint, "00" * 32))

        result = verify(
            "simulated", folder, NOW.isoformat(), "--policy", folder / "manifest.toml", "--json"
        )

        assert result.exit_code == 1
        assert json.loads(result.stdout)["reasons"][0]["code"] == "simulated.root"
