"""
Evidence and endorsements from files, in the layout of the recorded vectors.

A *role* is what a file is for (``quote``, ``vcek``, ``tpm_pcrs``, …). A manifest names the file of
each role; a folder without one is read by the usual file names. What becomes of a role is the same
either way: one document, or several, of `Evidence` or of `Endorsements`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from aigovtool.attestation.azure import verify as azure
from aigovtool.attestation.dcap.collateral import documents_from_json
from aigovtool.attestation.dcap.eventlog import EVENT_LOG
from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.nitro import verify as nitro
from aigovtool.attestation.nvidia import verify as nvidia
from aigovtool.attestation.simulated import ROOT_CA
from aigovtool.attestation.snp import verify as snp
from aigovtool.attestation.tpm2 import verify as tpm2
from aigovtool.errors import ConfigurationError

MAX_FILE_BYTES = 4 << 20
COLLATERAL = "collateral"

Roles = Mapping[str, object]
"""As in a vector's ``files``: a file name, a list of them, or a list of small tables of them."""

_QUOTE = {"quote": QUOTE}
_HCL = {
    "hcl_report": azure.HCL_REPORT,
    "tpm_quote": azure.TPM_QUOTE,
    "tpm_signature": azure.TPM_SIGNATURE,
    "tpm_pcrs": azure.TPM_PCRS,
}
_EVIDENCE: Mapping[Tee, Mapping[str, str]] = {
    Tee.SGX: _QUOTE,
    Tee.TDX: {**_QUOTE, "event_log": EVENT_LOG},
    Tee.SIMULATED: _QUOTE,
    Tee.SNP: {"report": snp.REPORT, "certificate_table": snp.CERTIFICATE_TABLE},
    Tee.NITRO: {"document": nitro.DOCUMENT},
    Tee.AZURE_SNP: _HCL,
    Tee.AZURE_TDX: {**_QUOTE, **_HCL},
    Tee.TPM2: {"ak_public": tpm2.AK_PUBLIC},
    Tee.NVIDIA: {},
}
_SNP_CERTIFICATES = {
    "vcek": snp.VCEK,
    "vlek": snp.VLEK,
    "ca_chain": snp.CA_CHAIN,
    "crl": snp.CRL,
}
_AK_CERTIFICATES = {
    "ak_cert": tpm2.AK_CERTIFICATE,
    "ak_intermediates": tpm2.AK_INTERMEDIATES,
}
_ENDORSEMENTS: Mapping[Tee, Mapping[str, str]] = {
    Tee.SIMULATED: {"root_ca": ROOT_CA},
    Tee.SNP: _SNP_CERTIFICATES,
    Tee.AZURE_SNP: {**_SNP_CERTIFICATES, **_AK_CERTIFICATES},
    Tee.AZURE_TDX: _AK_CERTIFICATES,
    Tee.TPM2: _AK_CERTIFICATES,
}
_WITH_COLLATERAL = frozenset({Tee.SGX, Tee.TDX, Tee.SIMULATED, Tee.AZURE_TDX})
# Usual names of a role's file, the first that is there. A certificate says itself whether it is DER
# or PEM, whatever its file is called.
_CERTIFICATES = ("vcek", "vlek", "ca_chain", "ak_cert", "ak_intermediates")
_CERTIFICATE_ENDS = (".der", ".pem", ".crt", ".cer")
_USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "quote": ("quote.bin",),
    "event_log": ("event_log.json",),
    COLLATERAL: ("collateral.json",),
    "root_ca": ("root_ca.der",),
    "report": ("report.bin",),
    "certificate_table": ("certificate_table.bin",),
    **{role: tuple(f"{role}{end}" for end in _CERTIFICATE_ENDS) for role in _CERTIFICATES},
    "crl": ("crl.der",),
    "document": ("document.cbor",),
    "hcl_report": ("hcl_report.bin",),
    "tpm_quote": ("tpm_quote.msg",),
    "tpm_signature": ("tpm_quote.sig",),
    "tpm_pcrs": ("tpm_pcrs_sha256.json",),
    "ak_public": ("ak_public.tpmt",),
}
_TPM_BANKS = ("sha1", "sha256", "sha384", "sha512")


def read_file(path: Path) -> bytes:
    """Return a file's bytes; raises ConfigurationError when it cannot be read or is too large."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigurationError(f"{path} is too large", expected=f"{MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read", code="file", came=error.strerror, mend="check the path"
        ) from None


def read_evidence(tee: Tee, path: Path) -> Evidence:
    """
    Read evidence from one file, or from a folder by the usual names.

    A kind whose evidence is several files is read from the folder of the file that is named.

    Raises:
        ConfigurationError: nothing there can be read as this kind of evidence.
    """
    if path.is_dir() or tee not in _ONE_FILE:
        folder = path if path.is_dir() else path.parent
        return evidence_of(tee, folder, usual_roles(folder))
    return Evidence(tee=tee, documents={next(iter(_EVIDENCE[tee].values())): read_file(path)})


def read_endorsements(tee: Tee, path: Path) -> Endorsements:
    """
    Read endorsements from one file (collateral as JSON; a certificate), or from a folder.

    Collateral of a kind whose endorsements are several files is one of those of its folder.

    Raises:
        ConfigurationError: a file cannot be read, or its name does not say what it is.
        MalformedError: collateral that is not its JSON.
    """
    if path.is_dir():
        return endorsements_of(tee, path, usual_roles(path))
    if tee in _ONE_FILE & _WITH_COLLATERAL and path.suffix == ".json":
        return endorsements_of(tee, path.parent, {COLLATERAL: path.name})
    if tee in _WITH_COLLATERAL | {Tee.COMPOSITE} and path.suffix == ".json":
        return endorsements_of(
            tee, path.parent, {**usual_roles(path.parent), COLLATERAL: path.name}
        )
    for role in _ENDORSEMENTS.get(tee, {}):
        if path.stem == role:
            return endorsements_of(tee, path.parent, {role: path.name})
    raise ConfigurationError(
        f"{path.name} does not say which endorsement it is",
        code="endorsements.name",
        expected=", ".join(sorted(_ENDORSEMENTS.get(tee, {}))) or f"no single file for {tee}",
        mend="name a folder in which each file has its usual name",
    )


def usual_roles(folder: Path) -> dict[str, object]:
    """Return the files of each role that a folder holds under usual names."""
    roles: dict[str, object] = {}
    for role, names in _USUAL_NAMES.items():
        found = next((name for name in names if (folder / name).is_file()), None)
        if found is not None:
            roles[role] = found
    collateral = sorted(file.name for file in folder.glob("collateral*.json"))
    if COLLATERAL not in roles and len(collateral) == 1:  # of several, somebody must say which
        roles[COLLATERAL] = collateral[0]
    roles["quotes"] = [
        {
            "bank": bank,
            "message": f"quote_{bank}.msg",
            "signature": f"quote_{bank}.sig",
            "pcrs": f"pcrs_{bank}.json",
        }
        for bank in _TPM_BANKS
        if (folder / f"quote_{bank}.msg").is_file()
    ]
    roles["devices"] = [
        {"evidence": name, "cert_chain": name.replace("evidence.bin", "cert_chain.pem")}
        for name in sorted(report.name for report in folder.glob("*evidence.bin"))
    ]
    roles["rims"] = sorted(rim.name for rim in folder.glob("*_rim.xml"))
    roles["ocsp"] = sorted(f"ocsp/{answer.name}" for answer in folder.glob("ocsp/*.der"))
    return roles


def evidence_of(tee: Tee, folder: Path, roles: Roles) -> Evidence:
    """Read what *roles* name as evidence; raises ConfigurationError when a file is not there."""
    documents: dict[str, bytes] = {}
    if tee is Tee.COMPOSITE:
        for part in (_composite_cpu(roles), Tee.NVIDIA):
            documents |= _prefixed(part, evidence_of(part, folder, roles).documents)
        return Evidence(tee=tee, documents=documents)
    documents |= _named(_EVIDENCE[tee], folder, roles)
    if tee is Tee.TPM2:
        documents |= _tpm_quotes(folder, roles)
    if tee is Tee.NVIDIA:
        documents |= _devices(folder, roles)
    if not documents:
        raise ConfigurationError(
            f"no {tee} evidence in {folder}",
            code="evidence.missing",
            expected=", ".join(_EVIDENCE[tee]) or "devices",
            mend="name the folder or file as the platform gave it",
        )
    return Evidence(tee=tee, documents=documents)


def endorsements_of(tee: Tee, folder: Path, roles: Roles) -> Endorsements:
    """Read what *roles* name as endorsements; raises as `read_endorsements` does."""
    documents: dict[str, bytes] = {}
    if tee is Tee.COMPOSITE:
        for part in (_composite_cpu(roles), Tee.NVIDIA):
            documents |= _prefixed(part, endorsements_of(part, folder, roles).documents)
        return Endorsements(tee=tee, documents=documents)
    documents |= _named(_ENDORSEMENTS.get(tee, {}), folder, roles)
    if tee in _WITH_COLLATERAL and COLLATERAL in roles:
        documents |= documents_from_json(read_file(folder / file_name(roles[COLLATERAL])))
    if tee is Tee.NVIDIA:
        for role, prefix in (("rims", nvidia.RIM_PREFIX), ("ocsp", nvidia.OCSP_PREFIX)):
            for name in _list(roles.get(role, [])):
                documents[prefix + file_name(name)] = read_file(folder / file_name(name))
    return Endorsements(tee=tee, documents=documents)


def _named(table: Mapping[str, str], folder: Path, roles: Roles) -> dict[str, bytes]:
    return {
        document: read_file(folder / file_name(roles[role]))
        for role, document in table.items()
        if role in roles
    }


def _tpm_quotes(folder: Path, roles: Roles) -> dict[str, bytes]:
    documents = {}
    for quote in map(_table, _list(roles.get("quotes", []))):
        bank = file_name(quote.get("bank"))
        for role, document in (
            ("message", tpm2.QUOTE),
            ("signature", tpm2.SIGNATURE),
            ("pcrs", tpm2.PCRS),
        ):
            if role in quote:
                documents[document.format(bank=bank)] = read_file(folder / file_name(quote[role]))
    return documents


def _devices(folder: Path, roles: Roles) -> dict[str, bytes]:
    documents = {}
    for number, device in enumerate(map(_table, _list(roles.get("devices", [])))):
        for role, document in (("evidence", nvidia.REPORT), ("cert_chain", nvidia.CERTIFICATES)):
            documents[document.format(number=number)] = read_file(
                folder / file_name(device.get(role))
            )
    return documents


def _composite_cpu(roles: Roles) -> Tee:
    """Return the kind of a composite's CPU part, by the roles that only this kind has."""
    match "hcl_report" in roles, "quote" in roles, "report" in roles:
        case True, True, False:
            return Tee.AZURE_TDX
        case True, False, False:
            return Tee.AZURE_SNP
        case False, True, False:
            return Tee.TDX
        case False, False, True:
            return Tee.SNP
    raise ConfigurationError(
        "composite evidence without exactly one CPU part",
        code="evidence.missing",
        expected="quote, report or hcl_report",
    )


def _prefixed(tee: Tee, documents: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{tee}.{name}": body for name, body in documents.items()}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else _unexpected("a list")


def _table(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else _unexpected("a table")


def file_name(value: object) -> str:
    """Return a file name below the folder; a manifest may not lead elsewhere."""
    if not isinstance(value, str) or value.startswith("/") or ".." in value.split("/"):
        return _unexpected("a file name below the folder")
    return value


def _unexpected(what: str) -> NoReturn:
    raise ConfigurationError(
        "the manifest of vectors cannot be read", code="manifest", expected=what
    )


_ONE_FILE = frozenset({Tee.SGX, Tee.TDX, Tee.SIMULATED, Tee.SNP, Tee.NITRO})
