"""
AWS Nitro Enclaves: the security module ``/dev/nsm``, one CBOR request by ioctl.

The report data goes into ``user_data``; the document is fresh by it, since it commits to the nonce
of whoever asks. The certificate bundle is inside the document, so no endorsement is needed.

Source: aws-nitro-enclaves-nsm-api, docs/attestation_process.md and nsm-driver.
"""

from __future__ import annotations

import ctypes
import io
from pathlib import Path

import cbor2

from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.attestation.nitro.verify import DOCUMENT
from aigovtool.enclave.attester.by_kernel import KernelAttester
from aigovtool.errors import UnavailableError

NSM = Path("/dev/nsm")
NSM_REQUEST = 0xC0200A00  # _IOWR(0x0A, 0, struct nsm_message): two iovecs, 32 bytes
RESPONSE_BYTES = 0x3000  # the driver's own limit


class NsmMessage(ctypes.Structure):
    """``struct nsm_message``: where the request is, and room for the response."""

    _fields_ = (
        ("request", ctypes.c_uint64),
        ("request_length", ctypes.c_uint64),
        ("response", ctypes.c_uint64),
        ("response_length", ctypes.c_uint64),
    )


class NitroAttester(KernelAttester):
    """Evidence from the Nitro security module: a document."""

    tee = Tee.NITRO
    default_path = NSM

    def describe(self) -> str:
        return f"nitro by {self._path}"

    def _ask(self, report_data: bytes) -> Evidence:
        body = cbor2.dumps(
            {"Attestation": {"user_data": report_data, "nonce": None, "public_key": None}}
        )
        request = ctypes.create_string_buffer(body, len(body))
        response = ctypes.create_string_buffer(RESPONSE_BYTES)
        argument = bytearray(
            NsmMessage(
                request=ctypes.addressof(request),
                request_length=len(body),
                response=ctypes.addressof(response),
                response_length=RESPONSE_BYTES,
            )
        )
        self._kernel.ioctl(self._path, NSM_REQUEST, argument)
        length = NsmMessage.from_buffer_copy(argument).response_length
        return Evidence(
            tee=self.tee,
            documents={DOCUMENT: _read_answer(response.raw[: min(length, RESPONSE_BYTES)])},
        )


def _read_answer(data: bytes) -> bytes:
    try:
        answer = cbor2.load(io.BytesIO(data))
    except (cbor2.CBORDecodeError, ValueError):
        raise UnavailableError(
            "the Nitro security module's answer is cut short",
            code="attester.short_read",
            came=f"{len(data)} bytes",
        ) from None
    if isinstance(answer, dict):
        attestation = answer.get("Attestation")
        document = attestation.get("document") if isinstance(attestation, dict) else None
        if isinstance(document, bytes):
            return document
        if isinstance(answer.get("Error"), str):
            raise UnavailableError(
                "the Nitro security module refused", code="attester.nsm", came=answer["Error"]
            )
    raise UnavailableError("the Nitro security module gave no document", code="attester.nsm")
