"""Typed identifiers and digests: what is parsed once and never confused with another string."""

from __future__ import annotations

import hashlib
import secrets
from typing import NewType

LoanId = NewType("LoanId", str)
ModelId = NewType("ModelId", str)
ConsumerId = NewType("ConsumerId", str)
SessionId = NewType("SessionId", str)
LeaseId = NewType("LeaseId", str)

DIGEST_BYTES = 32
ID_RANDOM_BYTES = 10  # 80 random bits: no two alike in any database this product will see


def new_id(prefix: str) -> str:
    """Return a fresh identifier such as ``loan_3f…``; *prefix* says what it names."""
    return f"{prefix}_{secrets.token_hex(ID_RANDOM_BYTES)}"


def sha256(data: bytes | bytearray | memoryview) -> bytes:
    """Return the 32-byte SHA-256 digest of *data*."""
    return hashlib.sha256(data).digest()
