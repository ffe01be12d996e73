"""
Intel SGX and TDX: quotes, collateral and TCB levels.

`quote` reads bytes, `chain` checks signatures, `collateral` and `tcb` say in what state the
platform is, `verify` puts them in order, `policy` says what is acceptable.
"""

from aigovtool.attestation.dcap.claims import PlatformClaims, SgxClaims, TdxClaims
from aigovtool.attestation.dcap.tcb import TcbStatus
from aigovtool.attestation.dcap.verify import verify_sgx, verify_tdx

__all__ = ["PlatformClaims", "SgxClaims", "TcbStatus", "TdxClaims", "verify_sgx", "verify_tdx"]
