"""
Intel's own verifier, as an independent oracle for the SGX vectors: does it come to the same?

`sgx-dcap-quote-verify-python` wraps Intel's Quote Verification Library (C++, no code shared with
dcap-qvl or us). It wants an older cbor2 than this product, so it lives in an environment of its own
and is asked in a process of its own; ``AIGOVTOOL_SGX_ORACLE`` names that environment's Python.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from typing import Any

import pytest

from tests.attestation.dcap_vectors import Case, cases
from tests.shared_data import shared

ORACLE = os.environ.get("AIGOVTOOL_SGX_ORACLE")
pytestmark = pytest.mark.skipif(
    ORACLE is None,
    reason="AIGOVTOOL_SGX_ORACLE names no Python that has sgx-dcap-quote-verify-python",
)

ASK = """
import base64, datetime, json, sys
from sgx_dcap_quote_verify import verify
asked = json.load(sys.stdin)
asked["quote"] = base64.b64decode(asked["quote"])
asked["expiration_date"] = datetime.datetime.fromisoformat(asked["expiration_date"])
said = verify(**asked)
print(json.dumps([said.pck_certificate_status.name, said.tcb_info_status.name,
                  said.qe_identity_status.name, said.quote_status.name]))
"""
STATUSES = {
    "STATUS_OK": "UpToDate",
    "STATUS_TCB_SW_HARDENING_NEEDED": "SWHardeningNeeded",
    "STATUS_TCB_CONFIGURATION_NEEDED": "ConfigurationNeeded",
    "STATUS_TCB_CONFIGURATION_AND_SW_HARDENING_NEEDED": "ConfigurationAndSWHardeningNeeded",
    "STATUS_TCB_OUT_OF_DATE": "OutOfDate",
    "STATUS_TCB_OUT_OF_DATE_CONFIGURATION_NEEDED": "OutOfDateConfigurationNeeded",
    "STATUS_TCB_REVOKED": "Revoked",
    "STATUS_TCB_NOT_SUPPORTED": "TCBNotSupported",
}


def ask(case: Case, quote: bytes) -> list[str]:
    """Return Intel's status of the PCK chain, the TCB info, the QE identity and the quote."""
    given: dict[str, str] = json.loads((case.folder / case.case["collateral"]).read_text())
    pck, *authorities = re.findall(rb"-----BEGIN.*?-----END CERTIFICATE-----\n?", quote, re.S)
    root = base64.encodebytes(shared("evidence", "roots", "intel_sgx_root_ca.der").read_bytes())
    asked: dict[str, Any] = {
        "trusted_root_ca_certificate": "-----BEGIN CERTIFICATE-----\n"
        f"{root.decode()}-----END CERTIFICATE-----\n",
        "pck_certificate": pck.decode(),
        "pck_signing_chain": b"".join(authorities).decode(),
        "root_ca_crl": given["root_ca_crl"],
        "intermediate_ca_crl": given["pck_crl"],
        "tcb_info": f'{{"tcbInfo":{given["tcb_info"]},'
        f'"signature":"{given["tcb_info_signature"]}"}}',
        "tcb_signing_chain": given["tcb_info_issuer_chain"],
        "quote": base64.b64encode(quote).decode(),
        "qe_identity": f'{{"enclaveIdentity":{given["qe_identity"]},'
        f'"signature":"{given["qe_identity_signature"]}"}}',
        "expiration_date": case.now.isoformat(),
    }
    command = [str(ORACLE), "-c", ASK]
    run = subprocess.run(
        command, input=json.dumps(asked), text=True, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr
    said: list[str] = json.loads(run.stdout)
    return said


WITH_COLLATERAL = [
    case for case in cases() if case.vector["tee"] == "SGX" and "collateral" in case.case
]


@pytest.mark.parametrize("case", WITH_COLLATERAL, ids=lambda case: case.name)
def test_intel_comes_to_the_same(case: Case) -> None:
    *documents, status = ask(case, case.quote)

    assert case.expected["authentic"] is (documents == ["STATUS_OK"] * 3)
    if case.expected["authentic"]:
        assert STATUSES[status] == case.expected["tcb_status"]


def test_intel_refuses_a_changed_measurement_too() -> None:
    case = WITH_COLLATERAL[0]
    quote = bytearray(case.quote)
    quote[48 + 64] ^= 1  # MRENCLAVE

    assert ask(case, bytes(quote))[3] == "STATUS_INVALID_QUOTE_SIGNATURE"
