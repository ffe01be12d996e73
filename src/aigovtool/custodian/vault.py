"""
The custodian's secrets: at rest under the master key, and out only against a permit.

Rule 1: a content key leaves only sealed by HPKE to an attested key, and only for a `ReleasePermit`,
        which `admission` makes after the session's row is durable.
Rule 2: at rest everything is AES-256-GCM with associated data that says what it is and whose, so
        no wrapped secret can stand in for another.
Rule 3: the master key is a file that nobody else may read, or comes by the environment; it is never
        made by a start of the server.

Random 96-bit nonces: one for each model ever sealed, far from the 2^32 of NIST SP 800-38D, 8.3.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aigovtool.crypto.hpke import seal
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.admission import ReleasePermit
from aigovtool.custodian.records import Custodian, LogHead, Model, Webhook
from aigovtool.errors import ConfigurationError, PromiseBrokenError
from aigovtool.tlog.note import NoteKey
from aigovtool.wire.codec import encode
from aigovtool.wire.enrolment import Secrets

MASTER_KEY_BYTES = 32
MASTER_KEY_VARIABLE = "AIGOVTOOL_MASTER_KEY"
NONCE_BYTES = 12


def new_master_key() -> bytes:
    """Return 32 fresh random bytes."""
    return secrets.token_bytes(MASTER_KEY_BYTES)


def write_master_key(key: bytes) -> str:
    """Return the text of a master key's file: base64url and a line feed."""
    return base64.urlsafe_b64encode(key).decode() + "\n"


def read_master_key(path: Path, environ: Mapping[str, str]) -> bytes:
    """
    Return the master key: of ``$AIGOVTOOL_MASTER_KEY`` when it is set, else of the file *path*.

    Raises:
        ConfigurationError: no such file, readable by others, or not 32 bytes in base64url or hex.
    """
    if (text := environ.get(MASTER_KEY_VARIABLE)) is not None:
        return _parse(text, f"the environment variable {MASTER_KEY_VARIABLE}")
    try:
        # O_NOFOLLOW: the checked file is the one that is read
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            body = file.read(1024)
    except OSError as error:
        raise ConfigurationError(
            f"the master key {path} cannot be read",
            code="master_key",
            came=error.strerror,
            mend=f"name it with --master-key-file, or give it in {MASTER_KEY_VARIABLE}",
        ) from None
    if mode & 0o077:
        raise ConfigurationError(
            f"the master key {path} can be read by others",
            code="master_key.mode",
            expected="mode 0600",
            came=f"mode {mode & 0o777:04o}",
            mend=f"chmod 600 {path}",
        )
    return _parse(body.decode("ascii", "replace"), str(path))


def _parse(text: str, where: str) -> bytes:
    text = text.strip()
    try:
        if len(text) == 2 * MASTER_KEY_BYTES:
            key = bytes.fromhex(text)
        else:
            padded = text + "=" * (-len(text) % 4)
            key = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != MASTER_KEY_BYTES:
        raise ConfigurationError(
            f"{where} is not a master key",
            code="master_key",
            expected=f"{MASTER_KEY_BYTES} bytes in base64url or hex",
        )
    return key


class Vault:
    """Wraps and unwraps under one master key."""

    __slots__ = ("_aead",)

    def __init__(self, master_key: bytes) -> None:
        self._aead = AESGCM(master_key)

    def keep_signing_key(self, key: SigningKey) -> bytes:
        """Wrap the custodian's signing key for the database."""
        return self._keep(key.seed(), Label.SIGNING_KEY_AT_REST, key.public_key)

    def signing_key(self, custodian: Custodian) -> SigningKey:
        """Unwrap the custodian's signing key; raises ConfigurationError under another master."""
        seed = self._open(
            custodian.wrapped_signing_key, Label.SIGNING_KEY_AT_REST, custodian.public_key
        )
        key = SigningKey.from_seed(seed)
        if key.public_key != custodian.public_key:
            raise PromiseBrokenError("the custodian's key at rest is not its public key's")
        return key

    def keep_log_key(self, key: NoteKey) -> bytes:
        """Wrap the key of the ledger's log for the database."""
        return self._keep(key.seed(), Label.LOG_KEY_AT_REST, key.verifier.public_key)

    def log_key(self, head: LogHead) -> NoteKey:
        """Unwrap the log's key; raises ConfigurationError under another master."""
        seed = self._open(head.wrapped_key, Label.LOG_KEY_AT_REST, head.public_key)
        key = NoteKey.from_seed(head.origin, seed)
        if key.verifier.public_key != head.public_key:
            raise PromiseBrokenError("the log's key at rest is not its public key's")
        return key

    def keep_webhook_secret(self, secret: bytes, webhook: str) -> bytes:
        """Wrap a webhook's secret for the database."""
        return self._keep(secret, Label.WEBHOOK_SECRET_AT_REST, webhook.encode())

    def webhook_secret(self, webhook: Webhook) -> bytes:
        """Unwrap a webhook's secret; raises ConfigurationError under another master key."""
        whose = webhook.webhook.encode()
        return self._open(webhook.wrapped_secret, Label.WEBHOOK_SECRET_AT_REST, whose)

    def keep_content_key(self, content_key: bytes, model_digest: bytes) -> bytes:
        """Wrap a model's content key for the database."""
        return self._keep(content_key, Label.CONTENT_KEY_AT_REST, model_digest)

    def wrap(self, permit: ReleasePermit, model: Model) -> bytes:
        """
        Seal the content key of the permit's model to the permit's attested key.

        Raises:
            PromiseBrokenError: *model* is not the one that the permit is for.
            ConfigurationError: it was kept under another master key.
        """
        if model.digest != permit.model_digest:
            raise PromiseBrokenError("a permit for one model was used for another")
        content_key = self._open(model.wrapped_key, Label.CONTENT_KEY_AT_REST, model.digest)
        return seal(
            permit.hpke_key,
            encode(Secrets(content_key=content_key)),
            Label.CONTENT_KEY_RELEASE,
            permit.context,
        )

    def _keep(self, secret: bytes, label: Label, whose: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, secret, label.value + b"\0" + whose)

    def _open(self, wrapped: bytes, label: Label, whose: bytes) -> bytes:
        nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        try:
            return self._aead.decrypt(nonce, sealed, label.value + b"\0" + whose)
        except (InvalidTag, ValueError):
            raise ConfigurationError(
                "a key in the ledger does not open",
                code="master_key.wrong",
                expected="the master key under which this ledger was made",
                came="another one, or an altered ledger",
                mend="give the right one with --master-key-file",
            ) from None
