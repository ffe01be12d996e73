"""The recorded TPM, Azure, NVIDIA and composite evidence, as our own `Evidence`, case by case."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from aigovtool.attestation.azure import verify as azure
from aigovtool.attestation.azure.policy import AzureSnpPolicy, AzureTdxPolicy
from aigovtool.attestation.dcap.collateral import documents_from_json
from aigovtool.attestation.dcap.policy import TdxPolicy
from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.nvidia import verify as nvidia
from aigovtool.attestation.snp import verify as snp
from aigovtool.attestation.snp.policy import SnpPolicy
from aigovtool.attestation.tpm2 import verify as tpm2
from tests.shared_data import ROOT, shared


@dataclass(frozen=True, slots=True)
class Case:
    """One case of one vector of the manifest."""

    vector: Mapping[str, Any]
    case: Mapping[str, Any]

    @property
    def id(self) -> str:
        return f"{self.vector['id']}: {self.case['name']}"

    @property
    def now(self) -> datetime:
        return datetime.fromisoformat(self.case["verification_time"])

    @property
    def expected(self) -> Mapping[str, Any]:
        return self.case["expected"]

    @property
    def fields(self) -> Mapping[str, Any]:
        return self.vector["fields"]

    def path(self, name: str) -> Path:
        return shared("evidence", *self.vector["id"].split("/"), *name.split("/"))

    def file(self, name: str) -> bytes:
        return self.path(name).read_bytes()


def cases(*kinds: str) -> list[Any]:
    """Every case of the vectors in the folders *kinds*, as pytest parameters."""
    found = [
        Case(vector, case)
        for vector in _manifest()
        if vector["id"].split("/")[0] in kinds
        for case in vector["cases"]
    ]
    return [pytest.param(case, id=case.id) for case in found]


def case_of(vector_id: str, index: int = 0) -> Case:
    """One case of one vector; skips when the vectors are not there."""
    shared("evidence", "manifest.json")
    return next(
        Case(vector, vector["cases"][index]) for vector in _manifest() if vector["id"] == vector_id
    )


def tpm2_parts(case: Case) -> tuple[Evidence, Endorsements]:
    documents = {tpm2.AK_PUBLIC: case.file(case.vector["files"]["ak_public"])}
    for quote in case.vector["files"]["quotes"]:
        bank = quote["bank"]
        documents[tpm2.QUOTE.format(bank=bank)] = case.file(quote["message"])
        documents[tpm2.SIGNATURE.format(bank=bank)] = case.file(quote["signature"])
        documents[tpm2.PCRS.format(bank=bank)] = case.file(quote["pcrs"])
    return Evidence(tee=Tee.TPM2, documents=documents), Endorsements(tee=Tee.TPM2)


def nvidia_parts(case: Case) -> tuple[Evidence, Endorsements]:
    files = case.vector["files"]
    documents = {}
    for number, device in enumerate(files["devices"]):
        documents[nvidia.REPORT.format(number=number)] = case.file(device["evidence"])
        documents[nvidia.CERTIFICATES.format(number=number)] = case.file(device["cert_chain"])
    endorsements = {nvidia.RIM_PREFIX + name: case.file(name) for name in files.get("rims", ())}
    endorsements |= {nvidia.OCSP_PREFIX + name: case.file(name) for name in files.get("ocsp", ())}
    return (
        Evidence(tee=Tee.NVIDIA, documents=documents),
        Endorsements(tee=Tee.NVIDIA, documents=endorsements),
    )


def azure_parts(case: Case) -> tuple[Evidence, Endorsements]:
    files = case.vector["files"]
    tee = Tee(case.vector["id"].split("/")[0])
    documents = {
        name: case.file(files[name])
        for name in (azure.HCL_REPORT, azure.TPM_QUOTE, azure.TPM_SIGNATURE, azure.TPM_PCRS)
    }
    endorsements = {}
    for name, key in (
        (snp.VCEK, "vcek"),
        (snp.CA_CHAIN, "ca_chain"),
        (tpm2.AK_CERTIFICATE, "ak_cert"),
        (tpm2.AK_INTERMEDIATES, "ak_intermediates"),
    ):
        if key in files:
            endorsements[name] = case.file(files[key])
    if tee is Tee.AZURE_TDX:
        documents[QUOTE] = case.file(files["quote"])
        endorsements |= collateral(case)
    return (
        Evidence(tee=tee, documents=documents),
        Endorsements(tee=tee, documents=endorsements),
    )


def composite_parts(case: Case) -> tuple[Evidence, Endorsements]:
    evidence, endorsements = nvidia_parts(case)
    documents = {f"nvidia.{name}": body for name, body in evidence.documents.items()}
    documents[f"tdx.{QUOTE}"] = case.file(case.vector["files"]["quote"])
    endorsed = {f"nvidia.{name}": body for name, body in endorsements.documents.items()}
    endorsed |= {f"tdx.{name}": body for name, body in collateral(case).items()}
    return (
        Evidence(tee=Tee.COMPOSITE, documents=documents),
        Endorsements(tee=Tee.COMPOSITE, documents=endorsed),
    )


def collateral(case: Case) -> dict[str, bytes]:
    return documents_from_json(case.file(case.case["collateral"]))


P = TypeVar("P", Evidence, Endorsements)


def with_document(evidence: P, name: str, body: bytes) -> P:
    return replace(evidence, documents={**evidence.documents, name: body})


def without_document(evidence: P, name: str) -> P:
    rest = {key: body for key, body in evidence.documents.items() if key != name}
    return replace(evidence, documents=rest)


def flips(body: bytes, *, step: int = 1) -> Iterator[bytes]:
    """*body* with one bit changed, at every *step*-th byte."""
    for at in range(0, len(body), step):
        yield body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1 :]


@cache
def _manifest() -> tuple[Mapping[str, Any], ...]:
    path = ROOT / "evidence" / "manifest.json"
    return tuple(json.loads(path.read_bytes())["vectors"]) if path.exists() else ()


# What the README of the recordings calls strict.
TDX_STRICT: dict[str, Any] = {
    "tee": "tdx",
    "tcb_statuses": ["UpToDate"],
    "tcb_grace_days": 0,
    "min_tcb_evaluation_number": 0,
    "advisories_refused": [],
    "debug": False,
    "sept_ve_disable": "set",
    "migratable": "any",
    "pks": "clear",
    "key_locker": "clear",
    "perfmon": "any",
    "mr_service_td": ["00" * 48],
    "xfam": "00" * 8,
    "xfam_mask": "00" * 8,
}
SNP_STRICT: dict[str, Any] = {"tee": "snp", "debug": "forbidden"}
GUEST = {
    "vm_ids": "any",
    "pcrs": "any",
    "secure_boot": "any",
    "console": "any",
    "attestation_key": "any",
}


def free_but(kind: type[msgspec.Struct], given: dict[str, Any]) -> dict[str, Any]:
    """A table of *kind* in which every field that is not given is ``any``."""
    return {field.name: "any" for field in msgspec.structs.fields(kind)} | given


def strict_policy(tee: str) -> AzureSnpPolicy | AzureTdxPolicy:
    tee = str(tee)
    if tee == "azure-snp":
        hardware = free_but(SnpPolicy, SNP_STRICT)
        return msgspec.convert({"tee": tee, "hardware": hardware, **GUEST}, AzureSnpPolicy)
    hardware = free_but(TdxPolicy, TDX_STRICT)
    return msgspec.convert({"tee": tee, "hardware": hardware, **GUEST}, AzureTdxPolicy)
