"""
Every domain-separation label of the product, in one list.

Rule: what is signed, encrypted or derived for one purpose must be useless for another,
so each purpose has a label here and no label has two purposes.
"""

from __future__ import annotations

from enum import Enum


class Label(bytes, Enum):
    """A purpose. The value goes into the signature, the HPKE info or the associated data."""

    BINDING_TO_CUSTODIAN = b"aigovtool/v1/evidence-for-custodian"
    BINDING_TO_CONSUMER = b"aigovtool/v1/evidence-for-consumer"
    CONTENT_KEY_RELEASE = b"aigovtool/v1/content-key-release"
    CONTENT_KEY_AT_REST = b"aigovtool/v1/content-key-at-rest"
    SIGNING_KEY_AT_REST = b"aigovtool/v1/signing-key-at-rest"
    WEBHOOK_SECRET_AT_REST = b"aigovtool/v1/webhook-secret-at-rest"
    SEALED_MANIFEST = b"aigovtool/v1/sealed-manifest"
    SEALED_BODY = b"aigovtool/v1/sealed-body"
    SESSION_STATEMENT = b"aigovtool/v1/session-statement"
    CONTROL_HELLO = b"aigovtool/v1/control-hello"
    SETTLEMENT = b"aigovtool/v1/settlement"
    RECEIPT = b"aigovtool/v1/receipt"
    RECEIPTS_HEAD = b"aigovtool/v1/receipts-head"
    STATEMENT = b"aigovtool/v1/statement"
    STOP_PROOF = b"aigovtool/v1/stop-proof"
    DRILL_SHEET = b"aigovtool/v1/drill-sheet"
    RA_TLS = b"aigovtool/v1/ra-tls"
    LOG_KEY = b"aigovtool/v1/log-key"
    LOG_KEY_AT_REST = b"aigovtool/v1/log-key-at-rest"
    LOG_OPENING = b"aigovtool/v1/log-opening"
    GRANT_NOTICE = b"aigovtool/v1/grant-notice"
    GRANT_SEEN = b"aigovtool/v1/grant-seen"
