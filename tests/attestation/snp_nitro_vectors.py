"""Recorded SEV-SNP and Nitro evidence as cases; what the manifest gains, the tests gain."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.nitro import verify as nitro
from aigovtool.attestation.nitro.policy import NitroPolicy
from aigovtool.attestation.snp import verify as snp
from aigovtool.attestation.snp.policy import SnpPolicy
from tests.shared_data import shared

NOT_FOR_THE_VERIFIER = {"security_policy"}


@dataclass(frozen=True)
class Vector:
    """One recorded document with its endorsements, what is in it, and what should become of it."""

    id: str
    evidence: Evidence
    endorsements: Endorsements
    fields: dict[str, Any]
    cases: list[dict[str, Any]]

    @property
    def authentic(self) -> bool:
        return self.cases[0]["expected"]["authentic"] is True

    @property
    def time(self) -> datetime:
        return time_of(self.cases[0])


def time_of(case: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(case["verification_time"])


def load(tee: Tee) -> list[Vector]:
    """Return every vector of *tee*: `Tee.SNP` or `Tee.NITRO`."""
    kind, evidence_name = {
        Tee.SNP: ("SEV-SNP", snp.REPORT),
        Tee.NITRO: ("Nitro", nitro.DOCUMENT),
    }[tee]
    root = shared("evidence")
    manifest = json.loads((root / "manifest.json").read_text())
    vectors = []
    for entry in manifest["vectors"]:
        if entry["tee"] != kind:
            continue
        documents = {
            name: Path(root, entry["id"], file).read_bytes()
            for name, file in entry["files"].items()
            if name not in NOT_FOR_THE_VERIFIER
        }
        vectors.append(
            Vector(
                id=entry["id"],
                evidence=Evidence(tee=tee, documents={evidence_name: documents.pop(evidence_name)}),
                endorsements=Endorsements(tee=tee, documents=documents),
                fields=entry["fields"],
                cases=entry["cases"],
            )
        )
    return vectors


def one(tee: Tee, vector_id: str) -> Vector:
    return next(vector for vector in load(tee) if vector.id == vector_id)


def all_cases(tee: Tee) -> list[tuple[str, Vector, dict[str, Any]]]:
    return [(f"{v.id}: {case['name']}", v, case) for v in load(tee) for case in v.cases]


def snp_policy(**fields: Any) -> SnpPolicy:
    """Return a policy that does not care about anything but *fields*."""
    free = dict.fromkeys(SnpPolicy.__struct_fields__, "any")
    return msgspec.convert({"tee": "snp"} | free | fields, SnpPolicy)


def nitro_policy(**fields: Any) -> NitroPolicy:
    """Return a policy that does not care about anything but *fields*."""
    free = dict.fromkeys(NitroPolicy.__struct_fields__, "any")
    return msgspec.convert({"tee": "nitro"} | free | fields, NitroPolicy)
