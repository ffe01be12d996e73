"""
What the bytes of a TPM 2.0 quote say: TPMS_ATTEST, TPMT_PUBLIC and TPMT_SIGNATURE.

Rule 1: everything is big-endian, every length is checked, and nothing may follow a structure.
Rule 2: only what a quote needs is read: RSA and ECC keys, RSASSA, RSAPSS and ECDSA, one PCR bank
        in a quote. Anything else is refused and never skipped over.
Rule 3: nothing here is checked for truth.

Source: TCG Trusted Platform Module Library, Part 2: Structures, revision 1.59, sections 6.3
(algorithms), 8.3 (TPMA_OBJECT), 10.6.1 (PCR selection), 10.12 (attestation), 11.2 (keys and
signatures), 12.2 (public areas).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag, StrEnum

from aigovtool.attestation.reader import Reader

MALFORMED = "tpm2.malformed"

TPM_GENERATED = 0xFF544347  # a restricted key signs nothing from outside that starts so
ATTEST_QUOTE = 0x8018
MAX_PCRS = 24  # PC Client platforms; TPML_PCR_SELECTION could name more

ALG_RSA = 0x0001
ALG_NULL = 0x0010
ALG_RSASSA = 0x0014
ALG_RSAPSS = 0x0016
ALG_ECDSA = 0x0018
ALG_ECC = 0x0023
DEFAULT_RSA_EXPONENT = 65537  # written as 0 (12.2.3.5)


class Hash(StrEnum):
    """A hash algorithm: of a PCR bank, or of a signature."""

    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"


HASHES = {0x0004: Hash.SHA1, 0x000B: Hash.SHA256, 0x000C: Hash.SHA384, 0x000D: Hash.SHA512}
DIGEST_BYTES = {Hash.SHA1: 20, Hash.SHA256: 32, Hash.SHA384: 48, Hash.SHA512: 64}
CURVES = {0x0003: "secp256r1", 0x0004: "secp384r1", 0x0005: "secp521r1"}


class Scheme(StrEnum):
    """A signature scheme."""

    RSASSA = "rsassa"
    RSAPSS = "rsapss"
    ECDSA = "ecdsa"


SCHEMES = {ALG_RSASSA: Scheme.RSASSA, ALG_RSAPSS: Scheme.RSAPSS, ALG_ECDSA: Scheme.ECDSA}


class Attribute(IntFlag):
    """The bits of TPMA_OBJECT that make a key an attestation key, or unmake it (8.3.2)."""

    FIXED_TPM = 1 << 1
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """
    A TPMS_ATTEST of type quote.

    Args:
        extra_data: what the caller of TPM2_Quote gave, up to 66 bytes: the nonce.
        qualified_signer: name of the signing key, as the TPM knows it.
        clock_ms: milliseconds for which the TPM has been powered.
        reset_count: TPM resets, so reboots, since the TPM was made or cleared.
        restart_count: resumes since the last reset.
        clock_safe: False when the clock may have run backwards.
        firmware_version: vendor's number.
        bank: hash algorithm of the PCRs quoted.
        indices: the PCRs quoted, ascending.
        pcr_digest: digest over the values of those PCRs, by the hash of the signature.
    """

    extra_data: bytes
    qualified_signer: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    clock_safe: bool
    firmware_version: int
    bank: Hash
    indices: tuple[int, ...]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RsaKey:
    """An RSA public key: modulus, public exponent."""

    n: int
    e: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EccKey:
    """A point on a named curve."""

    curve: str
    x: int
    y: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicArea:
    """
    A TPMT_PUBLIC.

    Args:
        attributes: TPMA_OBJECT; see `Attribute`.
        key: the public key itself.
    """

    attributes: int
    key: RsaKey | EccKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature: for RSA the octets, for ECDSA the integers r and s."""

    scheme: Scheme
    hash: Hash
    value: bytes | tuple[int, int]


def parse_quote(data: bytes) -> Quote:
    """
    Read a TPMS_ATTEST that is a quote over one PCR bank.

    Raises:
        MalformedError: not made by a TPM (magic), not a quote, or not of this layout.
    """
    reader = _reader(data, "TPMS_ATTEST")
    magic, kind = reader.uint(4), reader.uint(2)
    if magic != TPM_GENERATED:
        raise reader.malformed(
            "does not start with TPM_GENERATED", expected=f"{TPM_GENERATED:#x}", came=f"{magic:#x}"
        )
    if kind != ATTEST_QUOTE:
        raise reader.malformed(
            "is not a quote", expected=f"type {ATTEST_QUOTE:#x}", came=f"{kind:#x}"
        )
    qualified_signer, extra_data = reader.sized(2), reader.sized(2)
    clock_ms, reset_count, restart_count = reader.uint(8), reader.uint(4), reader.uint(4)
    safe = reader.uint(1)
    if safe > 1:
        raise reader.malformed("has a TPMI_YES_NO that is neither", came=str(safe))
    firmware_version = reader.uint(8)
    bank, indices = _pcr_selection(reader)
    pcr_digest = reader.sized(2)
    reader.end()
    return Quote(
        extra_data=extra_data,
        qualified_signer=qualified_signer,
        clock_ms=clock_ms,
        reset_count=reset_count,
        restart_count=restart_count,
        clock_safe=bool(safe),
        firmware_version=firmware_version,
        bank=bank,
        indices=indices,
        pcr_digest=pcr_digest,
    )


def parse_public(data: bytes) -> PublicArea:
    """Read a TPMT_PUBLIC of an RSA or ECC signing key; raises MalformedError on anything else."""
    reader = _reader(data, "TPMT_PUBLIC")
    kind = reader.uint(2)
    if kind not in (ALG_RSA, ALG_ECC):
        raise reader.malformed("is neither an RSA nor an ECC key", came=f"type {kind:#06x}")
    _hash(reader)  # nameAlg: the name is not used here
    attributes = reader.uint(4)
    reader.sized(2)  # authPolicy: who may use the key says nothing of what it signs
    symmetric = reader.uint(2)
    if symmetric != ALG_NULL:
        raise reader.malformed("is a storage key and not a signing key", came=f"{symmetric:#06x}")
    _skip_key_scheme(reader)
    key = _rsa_key(reader) if kind == ALG_RSA else _ecc_key(reader)
    reader.end()
    return PublicArea(attributes=attributes, key=key)


def parse_signature(data: bytes) -> Signature:
    """Read a TPMT_SIGNATURE by RSASSA, RSAPSS or ECDSA; raises MalformedError on others."""
    reader = _reader(data, "TPMT_SIGNATURE")
    algorithm = reader.uint(2)
    scheme = SCHEMES.get(algorithm)
    if scheme is None:
        raise reader.malformed("has an unknown algorithm", came=f"{algorithm:#06x}")
    hash_ = _hash(reader)
    value: bytes | tuple[int, int]
    if scheme is Scheme.ECDSA:
        value = (int.from_bytes(reader.sized(2)), int.from_bytes(reader.sized(2)))
    else:
        value = reader.sized(2)
    reader.end()
    return Signature(scheme=scheme, hash=hash_, value=value)


def _reader(data: bytes, what: str) -> Reader:
    return Reader(data, what=what, code=MALFORMED, byteorder="big")


def _hash(reader: Reader) -> Hash:
    algorithm = reader.uint(2)
    try:
        return HASHES[algorithm]
    except KeyError:
        raise reader.malformed("has an unknown hash", came=f"{algorithm:#06x}") from None


def _pcr_selection(reader: Reader) -> tuple[Hash, tuple[int, ...]]:
    count = reader.uint(4)
    if count != 1:
        raise reader.malformed("quotes not exactly one PCR bank", expected="1", came=str(count))
    bank = _hash(reader)
    bitmap = int.from_bytes(reader.sized(1), "little")  # bit n of octet n // 8 (10.6.1)
    if not 0 < bitmap < 1 << MAX_PCRS:
        raise reader.malformed(
            "quotes no PCR, or one that a PC does not have",
            expected=f"PCRs of 0 to {MAX_PCRS - 1}",
            came=f"bitmap {bitmap:#x}",
        )
    return bank, tuple(index for index in range(MAX_PCRS) if bitmap >> index & 1)


def _skip_key_scheme(reader: Reader) -> None:
    # The TPM holds a key to its scheme; the signature says which one it was made by.
    algorithm = reader.uint(2)
    if algorithm in SCHEMES:
        _hash(reader)
    elif algorithm != ALG_NULL:
        raise reader.malformed("has an unknown signature scheme", came=f"{algorithm:#06x}")


def _rsa_key(reader: Reader) -> RsaKey:
    key_bits, exponent = reader.uint(2), reader.uint(4)
    n = int.from_bytes(reader.sized(2))
    if n.bit_length() != key_bits:
        raise reader.malformed(
            "has a modulus of another length than it says",
            expected=f"{key_bits} bits",
            came=f"{n.bit_length()} bits",
        )
    return RsaKey(n=n, e=exponent or DEFAULT_RSA_EXPONENT)


def _ecc_key(reader: Reader) -> EccKey:
    curve_id, kdf = reader.uint(2), reader.uint(2)
    curve = CURVES.get(curve_id)
    if curve is None or kdf != ALG_NULL:
        raise reader.malformed("has an unknown curve or KDF", came=f"{curve_id:#06x}, {kdf:#06x}")
    return EccKey(curve=curve, x=int.from_bytes(reader.sized(2)), y=int.from_bytes(reader.sized(2)))
