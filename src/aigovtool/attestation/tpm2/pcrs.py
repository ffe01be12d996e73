"""
PCR values: what was measured, believed only because the quoted digest covers them.

The digest of a quote is a hash over the values of the selected PCRs, in ascending order, by the
hash of the *signature*, whatever the bank (Part 3, section 18.4 TPM2_Quote).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from aigovtool.attestation.tpm2.layout import DIGEST_BYTES, MALFORMED, MAX_PCRS, Hash, Quote
from aigovtool.errors import MalformedError, VerificationError

_decoder = msgspec.json.Decoder(dict[str, str] | list[str])


def parse_pcr_values(document: bytes, bank: Hash) -> dict[int, bytes]:
    """
    Read PCR values: JSON, an object from index to hex, or a list from PCR 0 on.

    Raises:
        MalformedError: other JSON, a PCR that does not exist, or a value not of the bank's length.
    """
    try:
        decoded = _decoder.decode(document)
        entries = decoded if isinstance(decoded, dict) else dict(map(_entry, enumerate(decoded)))
        values = {int(index): bytes.fromhex(value) for index, value in entries.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedError(
            "PCR values cannot be read", code=MALFORMED, expected="JSON, index to hex or a list"
        ) from None
    if not entries.keys() <= set(map(str, range(MAX_PCRS))):
        raise MalformedError(
            "PCR values of PCRs that do not exist",
            code=MALFORMED,
            expected=f"0 to {MAX_PCRS - 1}, in decimal",
        )
    for index, value in values.items():
        if len(value) != DIGEST_BYTES[bank]:
            raise MalformedError(
                f"the value of PCR {index} is not a {bank} digest",
                code=MALFORMED,
                expected=f"{DIGEST_BYTES[bank]} bytes",
                came=f"{len(value)} bytes",
            )
    return values


def check_pcr_digest(quote: Quote, signature_hash: Hash, values: Mapping[int, bytes]) -> None:
    """
    Check that exactly *values* were quoted.

    Raises:
        VerificationError: a quoted PCR has no value, a value was not quoted, or the digest differs.
    """
    if set(values) != set(quote.indices):
        raise VerificationError(
            "the PCR values given are not those that were quoted",
            code="tpm2.pcrs",
            expected=", ".join(map(str, quote.indices)),
            came=", ".join(map(str, sorted(values))),
        )
    digest = hashlib.new(signature_hash)
    for index in quote.indices:
        digest.update(values[index])
    if digest.digest() != quote.pcr_digest:
        raise VerificationError(
            "the PCR values do not give the quoted digest",
            code="tpm2.pcr_digest",
            expected=quote.pcr_digest.hex(),
            came=digest.hexdigest(),
        )


def _entry(pair: tuple[int, str]) -> tuple[str, str]:
    return str(pair[0]), pair[1]
