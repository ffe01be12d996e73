"""
AMD SEV-SNP by the older device ``/dev/sev-guest``: one ioctl for report and certificates.

``SNP_GET_EXT_REPORT`` takes a request, room for the answer, and room for the host's certificates.
When these need more room, the kernel says how much, and we ask again with that.

Source: Linux include/uapi/linux/sev-guest.h; AMD 56860 (MSG_REPORT_REQ, MSG_REPORT_RSP).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.attestation.snp.layout import REPORT_BYTES
from aigovtool.attestation.snp.verify import CERTIFICATE_TABLE, REPORT
from aigovtool.enclave.attester.by_kernel import KernelAttester
from aigovtool.errors import UnavailableError

SEV_GUEST = Path("/dev/sev-guest")
SNP_GET_EXT_REPORT = 0xC0205302  # _IOWR('S', 2, struct snp_guest_request_ioctl), 32 bytes
MESSAGE_VERSION = 1
RESPONSE_BYTES = 4000
REPORT_OFFSET = 32  # status, size, and 24 reserved bytes come before the report
FIRST_ROOM_BYTES = 16 << 10  # for VCEK, ASK and ARK with their table
MAX_ROOM_BYTES = 256 << 10
_PAGE_BYTES = 4096  # the room must be whole pages
_VMM_INVALID_LENGTH = 1


class _ReportRequest(ctypes.Structure):
    _fields_ = (
        ("report_data", ctypes.c_uint8 * 64),
        ("vmpl", ctypes.c_uint32),
        ("reserved", ctypes.c_uint8 * 28),
    )


class _ExtendedRequest(ctypes.Structure):
    _fields_ = (
        ("data", _ReportRequest),
        ("certificates", ctypes.c_uint64),
        ("certificates_length", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class GuestRequest(ctypes.Structure):
    """``struct snp_guest_request_ioctl``: addresses of request and answer, and two error codes."""

    _fields_ = (
        ("message_version", ctypes.c_uint8),
        ("request", ctypes.c_uint64),
        ("response", ctypes.c_uint64),
        ("firmware_error", ctypes.c_uint32),
        ("vmm_error", ctypes.c_uint32),
    )


class SevGuestAttester(KernelAttester):
    """Evidence from ``/dev/sev-guest``: a report, with the host's certificates if any."""

    tee = Tee.SNP
    default_path = SEV_GUEST

    def describe(self) -> str:
        return f"snp by {self._path}"

    def _ask(self, report_data: bytes) -> Evidence:
        return self._extended(report_data, FIRST_ROOM_BYTES)

    def _extended(self, report_data: bytes, room_bytes: int) -> Evidence:
        response = (ctypes.c_uint8 * RESPONSE_BYTES)()
        room = (ctypes.c_uint8 * room_bytes)()
        request = _ExtendedRequest(
            data=_ReportRequest(report_data=(ctypes.c_uint8 * 64)(*report_data), vmpl=0),
            certificates=ctypes.addressof(room),
            certificates_length=room_bytes,
        )
        argument = bytearray(
            GuestRequest(
                message_version=MESSAGE_VERSION,
                request=ctypes.addressof(request),
                response=ctypes.addressof(response),
            )
        )
        try:
            self._kernel.ioctl(self._path, SNP_GET_EXT_REPORT, argument)
        except UnavailableError:
            done = GuestRequest.from_buffer_copy(argument)
            needed = -(-request.certificates_length // _PAGE_BYTES) * _PAGE_BYTES
            if done.vmm_error == _VMM_INVALID_LENGTH and room_bytes < needed <= MAX_ROOM_BYTES:
                return self._extended(report_data, needed)
            raise
        status = int.from_bytes(bytes(response[0:4]), "little")
        size = int.from_bytes(bytes(response[4:8]), "little")
        if status != 0 or size != REPORT_BYTES:
            raise UnavailableError(
                "the firmware gave no report",
                code="attester.firmware",
                came=f"status {status}, {size} bytes",
            )
        documents = {REPORT: bytes(response[REPORT_OFFSET : REPORT_OFFSET + size])}
        table = bytes(room)
        if table.strip(b"\0"):
            documents[CERTIFICATE_TABLE] = table
        return Evidence(tee=self.tee, documents=documents)
