"""Recorded SGX and TDX evidence, as the tests of this folder use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aigovtool.attestation.dcap.collateral import documents_from_json
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from tests.shared_data import shared

TEES = {"SGX": Tee.SGX, "TDX": Tee.TDX}


@dataclass(frozen=True)
class Case:
    """One case of one vector."""

    name: str
    folder: Path
    tee: Tee
    vector: dict[str, Any]
    case: dict[str, Any]

    @property
    def now(self) -> datetime:
        return datetime.fromisoformat(self.case["verification_time"])

    @property
    def expected(self) -> dict[str, Any]:
        expected: dict[str, Any] = self.case["expected"]
        return expected

    @property
    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = self.vector["fields"]
        return fields

    @property
    def quote(self) -> bytes:
        return (self.folder / "quote.bin").read_bytes()

    def evidence(self, **changed: bytes) -> Evidence:
        documents = {"quote": self.quote}
        if "event_log" in self.vector["files"]:
            documents["event_log"] = (self.folder / "event_log.json").read_bytes()
        return Evidence(tee=self.tee, documents={**documents, **changed})

    def endorsements(self, **changed: bytes) -> Endorsements:
        documents = {}
        if "collateral" in self.case:
            documents = documents_from_json((self.folder / self.case["collateral"]).read_bytes())
        return Endorsements(tee=self.tee, documents={**documents, **changed})


def cases() -> list[Case]:
    """Return every SGX and TDX case, or skip when there are no vectors."""
    return list(_cases())


def _cases() -> Iterator[Case]:
    root = shared("evidence")
    for vector in json.loads((root / "manifest.json").read_text())["vectors"]:
        if vector["tee"] not in TEES:
            continue
        for case in vector["cases"]:
            name = f"{vector['id']}: {case['name']}"
            yield Case(name, root / vector["id"], TEES[vector["tee"]], vector, case)


def case(name: str) -> Case:
    """Return the first case of the vector *name*, such as ``tdx/v4-debug``."""
    return next(found for found in cases() if found.vector["id"] == name)
