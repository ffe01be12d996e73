"""
Evidence inside the enclave's certificate, so that other people's RA-TLS tools can read it.

Rule 1: never relied on alone. Such evidence answers no nonce, and so it may be old; it names no
        custodian and no loan; and relayed in a handshake it says nothing of who holds the
        connection (CVE-2026-33697). Our own client does not look at it: `judge` decides, on the
        document that answers the client's nonce, and evidence from a certificate fails there.
Rule 2: its report data is ``SHA-256(claims) || 32 zeros``, as the interoperable RA-TLS of Gramine,
        Intel and rats-tls has it. The claims name the TLS key and, under `Label.RA_TLS`, this one
        use. Report data with a nonce (`binding`) is a SHA-512 digest: it does not end in zeros.
Rule 3: two extensions, neither critical. ``tcg-dice-TaggedEvidence`` (2.23.133.5.4.9) holds the
        CBOR tag 60000 over ``[quote, claims]``, for SGX and TDX quotes alone; ``id-pe-cmw``
        (1.3.6.1.5.5.7.1.35) holds a CMW collection with all documents of any TEE. A simulated
        quote is only in the latter, which says that it is simulated.

Source: TCG DICE Attestation Architecture 1.1, 6.1; Gramine, tools/sgx/ra-tls (CBOR layout);
draft-ietf-rats-msg-wrap-23, 6 (X.509).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import cbor2
from cryptography import x509

from aigovtool.attestation import cmw
from aigovtool.attestation.binding import REPORT_DATA_BYTES
from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.crypto.labels import Label
from aigovtool.crypto.tls import spki_sha256_of
from aigovtool.errors import MalformedError, TooLargeError, VerificationError
from aigovtool.ids import DIGEST_BYTES, sha256

MALFORMED = "ratls.malformed"
TAGGED_EVIDENCE = x509.ObjectIdentifier("2.23.133.5.4.9")
CMW = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.35")
TEE_QUOTE_TAG = 60000
MAX_EXTENSION_BYTES = 64 << 10  # OpenSSL takes chains of 100 kB by default

_PUBKEY_HASH = "pubkey-hash"
_USE = "aigovtool-use"  # readers pass over claims that they do not know
_SHA256_ID = 1  # IANA Named Information Hash Algorithm Registry
_QUOTE_TEES = {0x00: Tee.SGX, 0x81: Tee.TDX}  # by tee_type of the quote's header
_OCTET_STRING, _LONG_LENGTH = 0x04, 0x80  # DER
_MAX_DEPTH = 3  # a tag, an array, its strings


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceWithoutNonce:
    """
    What a certificate says, not judged: rule 1 holds for whatever is done with it.

    Args:
        evidence: unchecked.
        report_data: 64 bytes that the evidence must commit to, if it is about this certificate's
            key (`attestation.verify.check_binding`).
        spki_sha256: 32 bytes, of that key.
    """

    evidence: Evidence
    report_data: bytes
    spki_sha256: bytes


def certificate_extensions(
    attest: Callable[[bytes], Evidence],
) -> Callable[[bytes], list[x509.ExtensionType]]:
    """
    Return what `crypto.tls.make_enclave_identity` takes as its *extensions*.

    Args:
        attest: gives evidence over 64 bytes of report data, such as `Attester.evidence`; called
            once, and its errors pass through.

    The function returned raises TooLargeError when the evidence does not fit into a certificate.
    """

    def extensions(spki_sha256: bytes) -> list[x509.ExtensionType]:
        claims = _claims(spki_sha256)
        evidence = attest(_report_data(claims))
        found = {CMW: _octet_string(cmw.to_cbor(cmw.wrap(evidence)))}
        if evidence.tee in _QUOTE_TEES.values():
            tagged = cbor2.CBORTag(TEE_QUOTE_TAG, [evidence.document(QUOTE), claims])
            found[TAGGED_EVIDENCE] = cbor2.dumps(tagged)
        for body in found.values():
            _check_size(body)
        return [x509.UnrecognizedExtension(oid, body) for oid, body in found.items()]

    return extensions


def read_certificate(certificate: bytes) -> EvidenceWithoutNonce:
    """
    Read the evidence in *certificate* (DER or PEM), ours or another tool's.

    Raises:
        MalformedError: not a certificate, no such extension, or one that cannot be read.
        VerificationError: the claims are about another key, or the extensions about other evidence.
    """
    spki_sha256 = spki_sha256_of(certificate)
    extensions = _extensions(certificate)
    tagged, wrapped = extensions.get(TAGGED_EVIDENCE), extensions.get(CMW)
    claims = _claims(spki_sha256)
    evidence = None
    if tagged is not None:
        quote, claims = _read_tagged(tagged)
        _check_key(claims, spki_sha256)
        evidence = _evidence_of(quote)
    if wrapped is not None:
        collection = cmw.unwrap(cmw.from_cbor(_from_octet_string(wrapped)))
        if evidence is not None and evidence.document(QUOTE) != collection.documents.get(QUOTE):
            raise VerificationError(
                "the two extensions of the certificate hold different evidence", code="ratls.two"
            )
        evidence = collection
    if evidence is None:
        raise MalformedError(
            "the certificate holds no evidence",
            code=MALFORMED,
            expected=f"an extension {TAGGED_EVIDENCE.dotted_string} or {CMW.dotted_string}",
        )
    return EvidenceWithoutNonce(
        evidence=evidence, report_data=_report_data(claims), spki_sha256=spki_sha256
    )


def _claims(spki_sha256: bytes) -> bytes:
    return cbor2.dumps(
        {_PUBKEY_HASH: cbor2.dumps([_SHA256_ID, spki_sha256]), _USE: Label.RA_TLS.value}
    )


def _report_data(claims: bytes) -> bytes:
    return sha256(claims).ljust(REPORT_DATA_BYTES, b"\0")


def _extensions(certificate: bytes) -> dict[x509.ObjectIdentifier, bytes]:
    """Return the two extensions, as far as they are there."""
    pem = certificate.lstrip().startswith(b"-----BEGIN")
    load = x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate
    try:
        every = list(load(certificate).extensions)
    except (ValueError, x509.DuplicateExtension):
        raise MalformedError(
            "the certificate's extensions cannot be read", code=MALFORMED
        ) from None
    found = {}
    for extension in every:
        if isinstance(extension.value, x509.UnrecognizedExtension):
            if extension.oid in (TAGGED_EVIDENCE, CMW):
                _check_size(extension.value.value)
            found[extension.oid] = extension.value.value
    return found


def _read_tagged(data: bytes) -> tuple[bytes, bytes]:
    """Return the quote and the exact bytes of the claims."""
    item = _decode(data)
    if isinstance(item, cbor2.CBORTag) and item.tag == TEE_QUOTE_TAG:
        match item.value:
            case [bytes(quote), bytes(claims)]:
                return quote, claims
    raise _malformed("is not the tag 60000 over a quote and claims")


def _check_key(claims: bytes, spki_sha256: bytes) -> None:
    match _decode(claims):
        case {"pubkey-hash": bytes(entry)}:
            pass
        case _:
            raise _malformed("has claims without a pubkey-hash")
    match _decode(entry):
        case [1, bytes(digest)] if len(digest) == DIGEST_BYTES:
            pass
        case _:
            raise _malformed("has a pubkey-hash that is not a SHA-256 digest")
    if digest != spki_sha256:
        raise VerificationError(
            "the evidence in the certificate is about another key",
            code="ratls.key",
            expected=spki_sha256.hex(),
            came=digest.hex(),
        )


def _evidence_of(quote: bytes) -> Evidence:
    """Say by the quote's header whose quote it is: tee_type, 4 bytes at 4 (Intel DCAP, A.3)."""
    tee = _QUOTE_TEES.get(int.from_bytes(quote[4:8], "little"))
    if tee is None or len(quote) < 8:
        raise _malformed("holds what is neither an SGX nor a TDX quote")
    return Evidence(tee=tee, documents={QUOTE: quote})


def _decode(data: bytes) -> object:
    stream = BytesIO(data)
    decoder = cbor2.CBORDecoder(stream, max_depth=_MAX_DEPTH, allow_duplicate_keys=False)
    try:
        item: object = decoder.decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError):
        raise _malformed("is not CBOR") from None
    if stream.tell() != len(data):
        raise _malformed("has bytes after its end")
    return item


def _octet_string(data: bytes) -> bytes:
    """Write the choice ``cbor`` of the CMW extension: a DER OCTET STRING."""
    size = len(data).to_bytes((len(data).bit_length() + 7) // 8 or 1)
    length = size if len(data) < _LONG_LENGTH else bytes([_LONG_LENGTH | len(size)]) + size
    return bytes([_OCTET_STRING]) + length + data


def _from_octet_string(data: bytes) -> bytes:
    for head_bytes in (2, 3, 4, 5):  # up to `MAX_EXTENSION_BYTES`
        if data[head_bytes:] and _octet_string(data[head_bytes:]) == data:
            return data[head_bytes:]
    raise _malformed("is not the cbor choice of a CMW")


def _check_size(data: bytes) -> None:
    if len(data) > MAX_EXTENSION_BYTES:
        raise TooLargeError(
            "evidence too large for a certificate",
            expected=f"at most {MAX_EXTENSION_BYTES} bytes",
            came=f"{len(data)} bytes",
        )


def _malformed(problem: str) -> MalformedError:
    return MalformedError(f"the certificate's evidence {problem}", code=MALFORMED)
