"""
What the bytes of an NVIDIA attestation report say: an SPDM 1.1 measurement exchange.

    request   version 1 | code 1 | param1 1 | param2 1 | nonce 32 | slot 1
    response  version 1 | code 1 | param1 1 | param2 1 | blocks 1 | length 3 | record | nonce 32
              | opaque length 2 | opaque data | signature 96
    block     index 1 | specification 1 | size 2 | value type 1 | value size 2 | value
    opaque    type 2 | size 2 | value, repeated

Rule 1: all integers are little-endian, lengths must add up, and nothing may follow.
Rule 2: the request must have asked for all measurements and a signature, from slot 0: a report on
        a part of the device is not a report on the device.
Rule 3: an index or an opaque field comes at most once.
Rule 4: nothing here is checked for truth.

Source: DMTF DSP0274 1.1.1, sections 10.11 (measurements) and 10.11.1 (measurement block); the
opaque fields as NVIDIA's nvtrust and attestation-sdk read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from aigovtool.attestation.reader import Reader

MALFORMED = "nvidia.malformed"

NONCE_BYTES = 32
SIGNATURE_BYTES = 96  # ECDSA P-384, r || s
MAX_OPAQUE_BYTES = 1024  # DSP0274, table 44

SPDM_VERSION = 0x11
GET_MEASUREMENTS = 0xE0
MEASUREMENTS = 0x60
WITH_SIGNATURE = 0x01
ALL_MEASUREMENTS = 0xFF
SLOT = 0
DMTF_SPECIFICATION = 0x01


class Opaque(IntEnum):
    """The opaque fields that are read; others are kept by number."""

    DRIVER_VERSION = 3
    VBIOS_VERSION = 6
    NVDEC0_STATUS = 11
    FWID = 20
    PROTECTED_PCIE_STATUS = 21
    FEATURE_FLAG = 36


ENABLED = b"\xaa"
DISABLED = b"\x55"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    One device's answer.

    Args:
        nonce: 32 bytes of the request, chosen by who asks.
        measurements: by SPDM index (from 1), the value; hashes and raw values alike.
        measurement_record: the blocks as they came, for a digest over all of them.
        opaque: by type, the value of each opaque field.
        signed: request and response up to the signature.
        signature: r || s.
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    measurement_record: bytes
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes

    def text(self, field: Opaque) -> str | None:
        """Return an opaque field of ASCII text without its padding, or None."""
        value = self.opaque.get(field)
        if value is None:
            return None
        return value.rstrip(b"\0").decode("ascii", errors="backslashreplace")

    @property
    def vbios_version(self) -> str | None:
        """
        The VBIOS version as RIMs write it, such as ``96.00.9F.00.01``.

        GPUs report it as an 8-byte number: the low four bytes, then the byte above them. Switches
        report the text.
        """
        value = self.opaque.get(Opaque.VBIOS_VERSION)
        if value is None or len(value) != 8:
            return self.text(Opaque.VBIOS_VERSION)
        return ".".join(f"{byte:02X}" for byte in (*value[3::-1], value[4]))


def parse_report(data: bytes) -> Report:
    """
    Read a request followed by its response; raises MalformedError for all that is not SPDM 1.1.

    Raises:
        MalformedError: another version or code, a part of the measurements, or a broken layout.
    """
    reader = Reader(data, what="NVIDIA attestation report", code=MALFORMED, byteorder="little")
    _expect(
        reader,
        "request",
        bytes([SPDM_VERSION, GET_MEASUREMENTS, WITH_SIGNATURE, ALL_MEASUREMENTS]),
    )
    nonce = reader.take(NONCE_BYTES)
    _expect(reader, "slot", bytes([SLOT]))
    _expect(reader, "response", bytes([SPDM_VERSION, MEASUREMENTS, 0, SLOT]))
    blocks = reader.uint(1)
    record = reader.sized(3)
    measurements = _measurements(record, blocks)
    reader.take(NONCE_BYTES)  # the device's own nonce: signed, and of no use to anyone else
    opaque_bytes = reader.sized(2)
    if len(opaque_bytes) > MAX_OPAQUE_BYTES:
        raise reader.malformed(
            "has too much opaque data",
            expected=f"at most {MAX_OPAQUE_BYTES} bytes",
            came=f"{len(opaque_bytes)} bytes",
        )
    opaque = _opaque(opaque_bytes)
    signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    return Report(
        nonce=nonce,
        measurements=measurements,
        measurement_record=record,
        opaque=opaque,
        signed=data[:-SIGNATURE_BYTES],
        signature=signature,
    )


def _expect(reader: Reader, what: str, expected: bytes) -> None:
    came = reader.take(len(expected))
    if came != expected:
        raise reader.malformed(
            f"has an unexpected {what}", expected=expected.hex(), came=came.hex()
        )


def _measurements(record: bytes, blocks: int) -> dict[int, bytes]:
    reader = Reader(record, what="measurement record", code=MALFORMED, byteorder="little")
    measurements: dict[int, bytes] = {}
    for _ in range(blocks):
        index, specification, size = reader.uint(1), reader.uint(1), reader.uint(2)
        block = Reader(
            reader.take(size), what="measurement block", code=MALFORMED, byteorder="little"
        )
        if specification != DMTF_SPECIFICATION or index in measurements:
            raise block.malformed(
                "is not by the DMTF's specification, or the second of its index",
                came=f"index {index}, specification {specification}",
            )
        block.uint(1)  # what was measured, and whether it is a digest: the RIM has values alone
        measurements[index] = block.sized(2)
        block.end()
    reader.end()
    return measurements


def _opaque(data: bytes) -> dict[int, bytes]:
    reader = Reader(data, what="opaque data", code=MALFORMED, byteorder="little")
    fields: dict[int, bytes] = {}
    while reader.left:
        kind = reader.uint(2)
        if kind in fields:
            raise reader.malformed("has a field twice", came=f"type {kind}")
        fields[kind] = reader.sized(2)
    return fields
