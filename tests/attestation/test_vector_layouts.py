"""
Every recorded case, through the library and the command; and again in other clothes.

A vector is the same evidence whether its certificates are PEM or DER, in which order a chain
stands, what its files are called, and what else lies beside them.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from aigovtool.attestation.dcap.quote import parse_quote
from aigovtool.cli import main
from aigovtool.cli.evidence_files import _composite_cpu
from aigovtool.cli.vectors import _tee_of, judge_case, read_manifest
from aigovtool.errors import ConfigurationError, MalformedError
from tests.shared_data import shared

EVIDENCE = shared("evidence")
CASES = [(vector, case) for vector in read_manifest(EVIDENCE).vectors for case in vector.cases]
NAMES = [f"{vector.id}: {case.name}" for vector, case in CASES]

Transform = Callable[[Path, dict[str, Any]], None]
"""Changes the folder of a vector and its ``files``, in place."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["attestation", *map(str, arguments)])


@pytest.mark.parametrize("number", range(len(CASES)), ids=NAMES)
def test_the_library_and_the_command_say_what_is_expected(number: int) -> None:
    vector, case = CASES[number]
    expected = case.expected
    endorsements = () if case.collateral is None else (EVIDENCE / vector.id / case.collateral,)

    verdict = judge_case(EVIDENCE, vector, case)
    result = run(
        *("verify", "--json", "--tee", _tee_of(vector), "--evidence", EVIDENCE / vector.id),
        *("--time", case.verification_time.isoformat()),
        *(("--endorsements", *endorsements) if endorsements else ()),
    )

    assert verdict.authentic is expected["authentic"]
    assert verdict.tcb_status == expected.get("tcb_status")
    assert verdict.strict_policy == expected["strict_policy"]
    came = json.loads(result.stdout)
    if expected["authentic"] is None:  # cannot be checked: neither accepted nor refused
        assert result.exit_code == 2
        assert came["error"]["reasons"][0]["code"] == "endorsement.missing"
        return
    assert result.exit_code == (0 if expected["strict_policy"] == "accept" else 1), result.output
    assert came["accepted"] is (expected["strict_policy"] == "accept")
    assert came["authentic"] is expected["authentic"]
    assert bool(came["reasons"]) is not came["accepted"]


def certificates_of(data: bytes) -> list[bytes]:
    """DER of each certificate of a document, PEM or DER."""
    found = re.findall(rb"-----BEGIN [^-]*-----(.*?)-----END", data, re.S)
    return [base64.b64decode(body) for body in found] or [data]


def as_pem(der: bytes, *, end: bytes = b"\n", width: int = 64) -> bytes:
    body = base64.b64encode(der)
    lines = [body[at : at + width] for at in range(0, len(body), width)]
    marks = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----", b""
    return end.join([marks[0], *lines, *marks[1:]])


SINGLE = ("vcek", "vlek", "ak_cert")
MANY = ("ca_chain", "ak_intermediates")


def rewrite(folder: Path, files: dict[str, Any], role: str, name: str, body: bytes) -> None:
    (folder / files[role]).unlink()
    (folder / name).write_bytes(body)
    files[role] = name


def der_becomes_pem_and_pem_der(folder: Path, files: dict[str, Any]) -> None:
    for role in SINGLE:
        if role in files:
            data = (folder / files[role]).read_bytes()
            der = certificates_of(data)[0]
            was_pem = data.startswith(b"-----")
            body = der if was_pem else as_pem(der)
            rewrite(folder, files, role, f"{role}.{'der' if was_pem else 'pem'}", body)


def pem_with_windows_lines_and_text_before(folder: Path, files: dict[str, Any]) -> None:
    for role in SINGLE + MANY:
        if role in files:
            ders = certificates_of((folder / files[role]).read_bytes())
            body = b"".join(b"Bag Attributes\r\n" + as_pem(der, end=b"\r\n") for der in ders)
            rewrite(folder, files, role, f"{role}.pem", body + b"\r\n\r\n")


def chains_upside_down(folder: Path, files: dict[str, Any]) -> None:
    for role in MANY:
        if role in files:
            ders = certificates_of((folder / files[role]).read_bytes())
            body = b"".join(as_pem(der) for der in reversed(ders))
            rewrite(folder, files, role, f"{role}.pem", body)
    for path in folder.glob("collateral*.json"):
        members = json.loads(path.read_text())
        for name in members:
            if name.endswith("_chain"):
                ders = certificates_of(members[name].encode())
                members[name] = b"".join(as_pem(der) for der in reversed(ders)).decode()
        path.write_text(json.dumps(members))


def leaf_with_its_chain_in_one_file(folder: Path, files: dict[str, Any]) -> None:
    """As Azure's instance metadata gives it."""
    if "vcek" in files and "ca_chain" in files:
        der = certificates_of((folder / files["vcek"]).read_bytes())[0]
        body = as_pem(der) + (folder / files["ca_chain"]).read_bytes()
        rewrite(folder, files, "vcek", "vcek.crt", body)


def quotes_padded(folder: Path, files: dict[str, Any]) -> None:
    """As Google Cloud pads them, and Azure its HCL reports."""
    for role in ("quote", "hcl_report"):
        if role in files:
            path = folder / files[role]
            path.write_bytes(path.read_bytes().ljust(16_000, b"\0"))


def documents_tagged(folder: Path, files: dict[str, Any]) -> None:
    if "document" in files:
        path = folder / files["document"]
        path.write_bytes(b"\xd2" + path.read_bytes())


def collateral_indented_and_upper_case(folder: Path, files: dict[str, Any]) -> None:
    for path in folder.glob("collateral*.json"):
        members = json.loads(path.read_text())
        for name in ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"):
            members[name] = members[name].upper()
        path.write_text(json.dumps(dict(reversed(members.items())), indent=7) + "\n\n")


def optional_files_left_out(folder: Path, files: dict[str, Any]) -> None:
    """PCR values and event logs explain a quote; it is as genuine without them."""
    for role in ("tpm_pcrs", "event_log", "vm_config", "security_policy"):
        if role in files:
            (folder / files.pop(role)).unlink()
    for quote in files.get("quotes", []):
        (folder / quote.pop("pcrs")).unlink()


def other_names_and_files_beside(folder: Path, files: dict[str, Any]) -> None:
    for role, name in list(files.items()):
        if isinstance(name, str):
            (folder / "deeper").mkdir(exist_ok=True)
            (folder / name).rename(folder / "deeper" / f"{role} (1)")
            files[role] = f"deeper/{role} (1)"
    (folder / "quote.bin").write_bytes(b"not the quote")
    (folder / "NOTES.txt").write_text("nothing")
    files["notes"] = "NOTES.txt"
    files["something_new"] = [{"what": "nobody knows"}]


TRANSFORMS: list[Transform] = [
    der_becomes_pem_and_pem_der,
    pem_with_windows_lines_and_text_before,
    chains_upside_down,
    leaf_with_its_chain_in_one_file,
    quotes_padded,
    documents_tagged,
    collateral_indented_and_upper_case,
    optional_files_left_out,
    other_names_and_files_beside,
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.__name__)
def test_the_same_evidence_in_other_clothes(tmp_path: Path, transform: Transform) -> None:
    folder = tmp_path / "evidence"
    shutil.copytree(EVIDENCE, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["vectors"].reverse()
    for vector in manifest["vectors"]:
        transform(folder / vector["id"], vector["files"])
        vector["added_later"] = {"for": "people"}
    (folder / "manifest.json").write_text(json.dumps(manifest))

    result = run("vectors", folder, "--json")

    came = json.loads(result.stdout)
    assert [one for one in came if not one["ok"]] == []
    assert len(came) == len(CASES)
    assert result.exit_code == 0


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0)])
def test_a_pck_chain_in_another_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    """The chain inside a quote is not signed as a whole: its order is nobody's word."""
    folder = tmp_path / "evidence"
    shutil.copytree(EVIDENCE, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["vectors"] = [one for one in manifest["vectors"] if "quote" in one["files"]]
    for vector in manifest["vectors"]:
        path = folder / vector["id"] / vector["files"]["quote"]
        quote = path.read_bytes()
        pem = parse_quote(quote).pck_chain_pem
        assert pem is not None
        blocks = re.findall(rb"-----BEGIN.*?-----END CERTIFICATE-----\n?", pem, re.S)
        assert len(blocks) == 3
        turned = b"".join(blocks[number].rstrip() + b"\n" for number in order)
        path.write_bytes(quote.replace(pem, turned.ljust(len(pem), b"\n")[: len(pem)]))
    (folder / "manifest.json").write_text(json.dumps(manifest))

    came = json.loads(run("vectors", folder, "--json").stdout)

    assert [one for one in came if not one["ok"]] == []


@pytest.mark.parametrize("end", ["pem", "der", "crt", "cer"])
def test_certificates_by_any_usual_ending(tmp_path: Path, end: str) -> None:
    folder = tmp_path / "milan"
    shutil.copytree(EVIDENCE / "snp" / "milan-v2", folder)
    (folder / "vcek.der").rename(folder / f"vcek.{end}")

    time = "2023-02-23T17:00:00Z"
    assert run("verify", "--tee", "snp", "--evidence", folder, "--time", time).exit_code == 0


def test_one_collateral_of_any_name_is_found_and_of_two_neither(tmp_path: Path) -> None:
    folder = tmp_path / "tdx"
    shutil.copytree(EVIDENCE / "tdx" / "v4-up-to-date", folder)
    (folder / "collateral.json").rename(folder / "collateral_2025.json")
    arguments = ("verify", "--tee", "tdx", "--evidence", folder, "--time", "2025-07-04T10:00:00Z")

    assert run(*arguments).exit_code == 0
    shutil.copy(folder / "collateral_2025.json", folder / "collateral_2026.json")
    assert run(*arguments).exit_code == 2


def test_composites_of_each_kind_are_told_by_their_files() -> None:
    assert _composite_cpu({"report": "r", "devices": []}) == "snp"
    assert _composite_cpu({"hcl_report": "h"}) == "azure-snp"
    assert _composite_cpu({"hcl_report": "h", "quote": "q"}) == "azure-tdx"
    for roles in ({}, {"quote": "q", "report": "r"}):
        with pytest.raises(ConfigurationError, match="exactly one CPU part"):
            _composite_cpu(roles)


def test_what_is_in_pem_here_is_a_certificate() -> None:
    """The helpers of this file, held against `cryptography`."""
    data = (EVIDENCE / "snp" / "milan-v3" / "ca_chain.pem").read_bytes()
    rebuilt = b"".join(as_pem(der) for der in certificates_of(data))

    assert x509.load_pem_x509_certificates(rebuilt) == x509.load_pem_x509_certificates(data)
    with pytest.raises(MalformedError):
        parse_quote(data)
