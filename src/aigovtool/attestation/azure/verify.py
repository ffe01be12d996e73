"""
Is the evidence of an Azure confidential VM genuine? From the hardware to the guest, link by link.

1. The hardware report inside the HCL report (SNP), or the quote beside it (TDX), is genuine.
2. It was asked for by the paravisor: on SNP at VMPL 0. The guest itself, at VMPL 2, could have any
   report data signed; on TDX it cannot ask at all. That it *is* Azure's paravisor, only the
   measurement says: a policy that accepts any measurement accepts anybody's paravisor.
3. Its report data is SHA-256 of the runtime data, followed by zeros.
4. The runtime data names the vTPM's attestation key; that key signed the quote.
5. The quote carries the nonce (extraData), and its digest covers the PCR values, when given.
6. Where an AK certificate is given, it is for that key and from Azure's pinned root.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypedDict

from aigovtool.attestation.azure.claims import AzureSnpClaims, AzureTdxClaims
from aigovtool.attestation.azure.layout import (
    HclReport,
    ReportType,
    parse_hcl_report,
    parse_runtime_data,
)
from aigovtool.attestation.dcap.verify import verify_tdx
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.snp import verify as snp
from aigovtool.attestation.tpm2.certificate import verify_ak_certificate
from aigovtool.attestation.tpm2.layout import Hash, Scheme, Signature, parse_quote
from aigovtool.attestation.tpm2.pcrs import check_pcr_digest, parse_pcr_values
from aigovtool.attestation.tpm2.signature import rsa_key, verify_signature
from aigovtool.attestation.tpm2.verify import AK_CERTIFICATE, AK_INTERMEDIATES
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import sha256

HCL_REPORT = "hcl_report"  # evidence: as read from the vTPM
TPM_QUOTE = "tpm_quote"  # evidence: TPMS_ATTEST over the SHA-256 bank
TPM_SIGNATURE = "tpm_signature"  # evidence: bare RSASSA-PKCS1v15 with SHA-256
TPM_PCRS = "tpm_pcrs"  # evidence, may be absent: JSON, index to hex or a list
# Evidence for TDX also has the quote, and endorsements are those of SNP or TDX, and the AK's
# certificates, all under the names that `snp`, `dcap` and `tpm2` give them.

PARAVISOR_VMPL = 0
_REPORT_DATA_BYTES = 64


class _Guest(TypedDict):
    """The arguments of `AzureClaims` that do not depend on the hardware."""

    report_data: bytes
    hcl_version: int
    vm_id: str
    secure_boot: bool
    console: bool
    user_data: bytes
    pcrs: Mapping[Hash, Mapping[int, bytes]]
    ak_certified: bool


def verify(
    evidence: Evidence, endorsements: Endorsements, *, now: datetime
) -> AzureSnpClaims | AzureTdxClaims:
    """
    Check evidence of kind ``azure-snp`` or ``azure-tdx``; the numbers are those of this module.

    Raises:
        MalformedError: a document is missing, cannot be read, or is of the other kind of hardware.
        VerificationError: a link of the chain does not hold.
    """
    hcl = parse_hcl_report(evidence.document(HCL_REPORT))
    expected = ReportType.SNP if evidence.tee is Tee.AZURE_SNP else ReportType.TDX
    if hcl.report_type is not expected:
        raise MalformedError(
            "HCL report of another kind of hardware than the evidence says",
            code="azure.hardware",
            expected=expected.name,
            came=hcl.report_type.name,
        )
    if hcl.report_type is ReportType.SNP:
        snp_evidence = Evidence(tee=Tee.SNP, documents={snp.REPORT: hcl.hardware_report})
        snp_endorsements = Endorsements(tee=Tee.SNP, documents=endorsements.documents)
        snp_claims = snp.verify(snp_evidence, snp_endorsements, now=now)  # 1
        if snp_claims.vmpl != PARAVISOR_VMPL:  # 2
            raise VerificationError(
                "the SNP report was not asked for by the paravisor",
                code="azure.vmpl",
                expected=f"VMPL {PARAVISOR_VMPL}",
                came=f"VMPL {snp_claims.vmpl}",
            )
        guest = _verify_guest(hcl, snp_claims.report_data, evidence, endorsements, now)
        return AzureSnpClaims(hardware=snp_claims, **guest)
    tdx_evidence = Evidence(tee=Tee.TDX, documents=evidence.documents)
    tdx_endorsements = Endorsements(tee=Tee.TDX, documents=endorsements.documents)
    tdx_claims = verify_tdx(tdx_evidence, tdx_endorsements, now=now)  # 1
    guest = _verify_guest(hcl, tdx_claims.report_data, evidence, endorsements, now)
    return AzureTdxClaims(hardware=tdx_claims, **guest)


def _verify_guest(
    hcl: HclReport,
    report_data: bytes,
    evidence: Evidence,
    endorsements: Endorsements,
    now: datetime,
) -> _Guest:
    expected = sha256(hcl.runtime_data).ljust(_REPORT_DATA_BYTES, b"\0")
    if report_data != expected:  # 3
        raise VerificationError(
            "the hardware report is not about this runtime data",
            code="azure.runtime_data",
            expected=expected.hex(),
            came=report_data.hex(),
        )
    runtime = parse_runtime_data(hcl.runtime_data)
    key = rsa_key(runtime.attestation_key)
    message = evidence.document(TPM_QUOTE)
    signature = Signature(
        scheme=Scheme.RSASSA, hash=Hash.SHA256, value=evidence.document(TPM_SIGNATURE)
    )
    verify_signature(key, signature, message)  # 4
    quote = parse_quote(message)
    pcrs: dict[Hash, dict[int, bytes]] = {}
    document = evidence.documents.get(TPM_PCRS)
    if document is not None:  # 5
        pcrs[quote.bank] = parse_pcr_values(document, quote.bank)
        check_pcr_digest(quote, signature.hash, pcrs[quote.bank])
    certificate = endorsements.documents.get(AK_CERTIFICATE)
    if certificate is not None:  # 6
        intermediates = endorsements.documents.get(AK_INTERMEDIATES)
        verify_ak_certificate(certificate, intermediates, key=key, now=now)
    return {
        "report_data": quote.extra_data,
        "hcl_version": hcl.version,
        "vm_id": runtime.vm_id,
        "secure_boot": runtime.secure_boot,
        "console": runtime.console,
        "user_data": runtime.user_data,
        "pcrs": pcrs,
        "ak_certified": certificate is not None,
    }
