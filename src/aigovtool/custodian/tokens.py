"""
Bearer tokens and API keys: 256 random bits, kept as their SHA-256.

A plain hash hides what has 256 random bits; there is nothing to guess, so nothing slow is needed.
The prefix says to a person, and to a scanner of leaked files, what was found.
"""

from __future__ import annotations

import hmac
import secrets

from aigovtool.ids import sha256

TOKEN_BYTES = 32
MAX_TOKEN_CHARACTERS = 256

ADMIN = "agt-admin"
METRICS = "agt-metrics"
TICKET = "agt-ticket"
CONSUMER = "agt-key"
BORROWER = "agt-borrower"


def new_token(prefix: str) -> str:
    """Return a fresh token such as ``agt-key_…``."""
    return f"{prefix}_{secrets.token_urlsafe(TOKEN_BYTES)}"


def hash_token(token: str) -> bytes:
    """Return the 32 bytes that are kept of *token*."""
    return sha256(token[:MAX_TOKEN_CHARACTERS].encode())


def same_token(token: str, token_sha256: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(hash_token(token), token_sha256)
