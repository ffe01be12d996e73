"""
Attesters for real hardware, against stand-ins of their kernel interfaces with recorded bytes.

What is not shown here, and cannot be without the hardware, is listed in docs/attestation.md.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from aigovtool.attestation.evidence import Evidence, Tee
from aigovtool.clock import SystemClock
from aigovtool.enclave.attester import detect
from aigovtool.enclave.attester.gramine import GRAMINE_ATTESTATION, GramineAttester
from aigovtool.enclave.attester.kernel import Kernel, door
from aigovtool.enclave.attester.nitro import NSM, NSM_REQUEST, NitroAttester, NsmMessage
from aigovtool.enclave.attester.retry import ATTEMPTS
from aigovtool.enclave.attester.sev_guest import (
    FIRST_ROOM_BYTES,
    MAX_ROOM_BYTES,
    SEV_GUEST,
    SNP_GET_EXT_REPORT,
    GuestRequest,
    SevGuestAttester,
)
from aigovtool.enclave.attester.tdx_guest import (
    TDX_CMD_GET_REPORT0,
    TDX_GUEST,
    TdxGuestAttester,
)
from aigovtool.enclave.attester.tsm import TSM_REPORTS, TsmAttester
from aigovtool.errors import ConfigurationError, MalformedError, UnavailableError
from tests.shared_data import shared

DATA = bytes(range(64))
PROVIDER_OF = {Tee.TDX: "tdx_guest", Tee.SNP: "sev_guest"}


def recorded(*parts: str) -> bytes:
    return shared("evidence", *parts).read_bytes()


class Pauses(list[float]):
    """A sleep that only remembers."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


class Configfs(Kernel):
    """
    A real directory that behaves like configfs-tsm: making a folder fills it, every write counts.

    Args:
        faults: errors raised by the next reads of ``outblob``, in order; None lets one pass.
        intruder: another request's write that comes between ours and the read, so many times.
    """

    def __init__(
        self,
        mount: Path,
        provider: str,
        outblob: bytes,
        *,
        auxblob: bytes | None = None,
        faults: list[int | None] | None = None,
        intruder: int = 0,
    ) -> None:
        self.mount = mount
        self.provider = provider
        self.outblob = outblob
        self.auxblob = auxblob
        self.faults = faults or []
        self.intruder = intruder
        self.inblobs: list[bytes] = []
        self.folders = 0

    def _at(self, path: Path) -> Path:
        return self.mount / path.relative_to(TSM_REPORTS)

    def exists(self, path: Path) -> bool:
        return path.is_relative_to(TSM_REPORTS) and self._at(path).exists()

    def mkdir(self, path: Path) -> None:
        super().mkdir(self._at(path))
        self.folders += 1
        for name, content in (("generation", "0\n"), ("provider", self.provider + "\n")):
            (self._at(path) / name).write_text(content)
        (self._at(path) / "inblob").touch()
        (self._at(path) / "outblob").write_bytes(b"")
        if self.auxblob is not None:
            (self._at(path) / "auxblob").write_bytes(self.auxblob)

    def rmdir(self, path: Path) -> None:
        for file in self._at(path).iterdir():  # in configfs the attributes go with the folder
            file.unlink()
        super().rmdir(self._at(path))

    def write(self, path: Path, data: bytes) -> None:
        super().write(self._at(path), data)
        self.inblobs.append(data)
        self._count(path.parent)
        (self._at(path.parent) / "outblob").write_bytes(self.outblob)

    def read(self, path: Path) -> bytes:
        if path.name == "outblob":
            fault = self.faults.pop(0) if self.faults else None
            if fault is not None:
                with door(path):
                    raise OSError(fault, os.strerror(fault))
            if self.intruder:
                self.intruder -= 1
                self._count(path.parent)
        return super().read(self._at(path))

    def _count(self, folder: Path) -> None:
        counter = self._at(folder) / "generation"
        counter.write_text(f"{int(counter.read_text()) + 1}\n")


def tsm(fs: Configfs, tee: Tee, pauses: Pauses | None = None) -> TsmAttester:
    return TsmAttester(tee, kernel=fs, sleep=pauses if pauses is not None else Pauses())


def test_tsm_gives_the_recorded_tdx_quote(tmp_path: Path) -> None:
    quote = recorded("tdx", "v4-up-to-date", "quote.bin")
    fs = Configfs(tmp_path, "tdx_guest", quote)
    evidence = tsm(fs, Tee.TDX).evidence(DATA)
    assert evidence == Evidence(tee=Tee.TDX, documents={"quote": quote})
    assert fs.inblobs == [DATA]
    assert list(tmp_path.iterdir()) == []  # the report folder is gone


def test_tsm_gives_the_recorded_snp_report_with_certificates(tmp_path: Path) -> None:
    report = recorded("snp", "milan-v3", "report.bin")
    fs = Configfs(tmp_path, "sev_guest", report, auxblob=b"table")
    evidence = tsm(fs, Tee.SNP).evidence(DATA)
    assert evidence.documents == {"report": report, "certificate_table": b"table"}


def test_tsm_without_certificates_gives_the_report_alone(tmp_path: Path) -> None:
    report = recorded("snp", "milan-v3", "report.bin")
    evidence = tsm(Configfs(tmp_path, "sev_guest", report, auxblob=b""), Tee.SNP).evidence(DATA)
    assert set(evidence.documents) == {"report"}


def test_tsm_tries_again_while_busy(tmp_path: Path) -> None:
    fs = Configfs(tmp_path, "tdx_guest", bytes(700), faults=[errno.EBUSY, errno.EINTR])
    pauses = Pauses()
    assert tsm(fs, Tee.TDX, pauses).evidence(DATA).documents["quote"] == bytes(700)
    assert fs.folders == 3
    assert pauses == sorted(pauses)
    assert len(pauses) == 2


def test_tsm_that_stays_busy_is_unavailable_and_leaves_nothing(tmp_path: Path) -> None:
    fs = Configfs(tmp_path, "tdx_guest", bytes(700), faults=[errno.EBUSY] * ATTEMPTS)
    with pytest.raises(UnavailableError) as caught:
        tsm(fs, Tee.TDX).evidence(DATA)
    assert caught.value.reasons[0].code == "attester.busy"
    assert list(tmp_path.iterdir()) == []


def test_tsm_report_of_another_request_is_not_taken(tmp_path: Path) -> None:
    fs = Configfs(tmp_path, "tdx_guest", bytes(700), intruder=1)
    tsm(fs, Tee.TDX).evidence(DATA)
    assert fs.folders == 2  # the first was thrown away
    fs = Configfs(tmp_path, "tdx_guest", bytes(700), intruder=ATTEMPTS)
    with pytest.raises(UnavailableError) as caught:
        tsm(fs, Tee.TDX).evidence(DATA)
    assert caught.value.reasons[0].code == "attester.generation"


@pytest.mark.parametrize(("tee", "size"), [(Tee.TDX, 631), (Tee.SNP, 1183), (Tee.TDX, 0)])
def test_tsm_short_read_is_not_evidence(tmp_path: Path, tee: Tee, size: int) -> None:
    fs = Configfs(tmp_path, PROVIDER_OF[tee], bytes(size))
    with pytest.raises(UnavailableError) as caught:
        tsm(fs, tee).evidence(DATA)
    assert caught.value.reasons[0].code == "attester.short_read"


def test_tsm_without_permission_says_who_lacks_it(tmp_path: Path) -> None:
    fs = Configfs(tmp_path, "tdx_guest", bytes(700), faults=[errno.EACCES])
    pauses = Pauses()
    with pytest.raises(ConfigurationError, match="user"):
        tsm(fs, Tee.TDX, pauses).evidence(DATA)
    assert pauses == []  # waiting would not mend it
    assert list(tmp_path.iterdir()) == []


def test_tsm_of_another_tee_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sev_guest"):
        tsm(Configfs(tmp_path, "sev_guest", bytes(1184)), Tee.TDX).evidence(DATA)


def test_missing_configfs_says_what_to_load(tmp_path: Path) -> None:
    attester = TsmAttester(Tee.TDX, path=tmp_path / "tsm", sleep=Pauses())
    with pytest.raises(ConfigurationError, match="configfs"):
        attester.evidence(DATA)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_is_never_padded_or_cut(tmp_path: Path, size: int) -> None:
    fs = Configfs(tmp_path, "tdx_guest", bytes(700))
    attesters: list[Any] = [
        tsm(fs, Tee.TDX),
        GramineAttester(kernel=fs),
        SevGuestAttester(kernel=fs),
        TdxGuestAttester(kernel=fs),
        NitroAttester(kernel=fs),
    ]
    for attester in attesters:
        with pytest.raises(MalformedError):
            attester.evidence(bytes(size))
    assert fs.inblobs == []


class Pseudo(Kernel):
    """Pseudo files and devices: contents by path, and what an ioctl does."""

    def __init__(
        self,
        files: dict[Path, bytes] | None = None,
        device: Callable[[int, bytearray], None] | None = None,
    ) -> None:
        self.files = files or {}
        self.device = device
        self.written: dict[Path, bytes] = {}
        self.calls = 0

    def exists(self, path: Path) -> bool:
        return path in self.files

    def mkdir(self, path: Path) -> None:
        with door(path):
            raise FileNotFoundError(errno.ENOENT, "")

    def read(self, path: Path) -> bytes:
        with door(path):
            if path not in self.files:
                raise FileNotFoundError(errno.ENOENT, "")
        return self.files[path]

    def write(self, path: Path, data: bytes) -> None:
        self.written[path] = data

    def ioctl(self, path: Path, request: int, argument: bytearray) -> None:
        self.calls += 1
        assert self.device is not None
        with door(path):
            self.device(request, argument)


def gramine(quote: bytes, kind: bytes = b"dcap\n") -> Pseudo:
    root = GRAMINE_ATTESTATION
    return Pseudo({root / "attestation_type": kind, root / "quote": quote})


def test_gramine_gives_the_recorded_sgx_quote() -> None:
    quote = recorded("sgx", "v3-config-and-swhardening", "quote.bin")
    kernel = gramine(quote)
    evidence = GramineAttester(kernel=kernel, sleep=Pauses()).evidence(DATA)
    assert evidence == Evidence(tee=Tee.SGX, documents={"quote": quote})
    assert kernel.written == {GRAMINE_ATTESTATION / "user_report_data": DATA}


def test_gramine_without_dcap_names_the_manifest_line() -> None:
    kernel = gramine(bytes(500), kind=b"none")
    with pytest.raises(ConfigurationError, match="remote_attestation"):
        GramineAttester(kernel=kernel, sleep=Pauses()).evidence(DATA)
    assert kernel.written == {}


def test_gramine_short_quote_is_not_evidence() -> None:
    with pytest.raises(UnavailableError, match="cut short"):
        GramineAttester(kernel=gramine(bytes(431)), sleep=Pauses()).evidence(DATA)


def snp_device(
    report: bytes, table: bytes = b"", *, status: int = 0, faults: list[int] | None = None
) -> Callable[[int, bytearray], None]:
    """A stand-in of ``/dev/sev-guest``, which reads and writes the caller's memory as it does."""
    waiting = list(faults or [])

    def ioctl(request: int, argument: bytearray) -> None:
        assert request == SNP_GET_EXT_REPORT
        message = GuestRequest.from_buffer(argument)
        if waiting:
            raise OSError(waiting.pop(0), "")
        asked = ctypes.string_at(message.request, 112)
        assert asked[:64] == DATA
        room_at, room_bytes = struct.unpack_from("<QI", asked, 96)
        assert room_bytes % 4096 == 0
        if len(table) > room_bytes:
            ctypes.memmove(message.request + 104, struct.pack("<I", len(table)), 4)
            message.vmm_error = 1
            raise OSError(errno.EIO, "")
        ctypes.memmove(room_at, table, len(table))
        answer = struct.pack("<II24x", status, len(report)) + report
        ctypes.memmove(message.response, answer, len(answer))

    return ioctl


@pytest.mark.parametrize("table", [b"", b"table", b"t" * (FIRST_ROOM_BYTES + 1)])
def test_sev_guest_gives_the_recorded_report(table: bytes) -> None:
    report = recorded("snp", "turin-v5", "report.bin")
    kernel = Pseudo(device=snp_device(report, table))
    documents = SevGuestAttester(kernel=kernel, sleep=Pauses()).evidence(DATA).documents
    assert documents["report"] == report
    assert documents.get("certificate_table", b"").rstrip(b"\0") == table
    assert kernel.calls == (2 if len(table) > FIRST_ROOM_BYTES else 1)


def test_sev_guest_never_makes_boundless_room() -> None:
    kernel = Pseudo(device=snp_device(bytes(1184), b"t" * (MAX_ROOM_BYTES + 1)))
    with pytest.raises(UnavailableError):
        SevGuestAttester(kernel=kernel, sleep=Pauses()).evidence(DATA)


@pytest.mark.parametrize(("status", "size"), [(0x16, 1184), (0, 1183), (0, 0)])
def test_sev_guest_firmware_error_is_not_evidence(status: int, size: int) -> None:
    kernel = Pseudo(device=snp_device(bytes(size), status=status))
    with pytest.raises(UnavailableError) as caught:
        SevGuestAttester(kernel=kernel, sleep=Pauses()).evidence(DATA)
    assert caught.value.reasons[0].code == "attester.firmware"


def test_sev_guest_tries_again_while_busy() -> None:
    report = recorded("snp", "milan-v2", "report.bin")
    kernel = Pseudo(device=snp_device(report, faults=[errno.EBUSY, errno.EAGAIN]))
    evidence = SevGuestAttester(kernel=kernel, sleep=Pauses()).evidence(DATA)
    assert evidence.documents == {"report": report}


class QuoteService:
    """The host's quote generation service at the other end of a vsock, byte by byte."""

    def __init__(self, quote: bytes, *, error: int = 0, cut: int = 0) -> None:
        body = struct.pack("<II", 0, len(quote)) + quote
        answer = struct.pack("<HHIII", 1, 0, 1, 16 + len(body), error) + body
        self.answer = (struct.pack(">I", len(answer)) + answer)[: -cut or None]
        self.asked = bytearray()
        self.closed = False

    def sendall(self, data: bytes) -> None:
        self.asked += data

    def recv(self, size: int) -> bytes:
        part, self.answer = self.answer[: min(size, 1000)], self.answer[min(size, 1000) :]
        return part

    def close(self) -> None:
        self.closed = True


def td_report(request: int, argument: bytearray) -> None:
    assert request == TDX_CMD_GET_REPORT0
    assert len(argument) == 64 + 1024
    argument[64:] = (b"report over " + argument[:64]).ljust(1024, b"\0")


def test_tdx_guest_gives_the_hosts_quote_over_our_report() -> None:
    quote = recorded("tdx", "v5-up-to-date", "quote.bin")
    service = QuoteService(quote)
    attester = TdxGuestAttester(
        kernel=Pseudo(device=td_report), connect=lambda: service, sleep=Pauses()
    )
    assert attester.evidence(DATA) == Evidence(tee=Tee.TDX, documents={"quote": quote})
    assert bytes(service.asked[28:]).startswith(b"report over " + DATA)
    assert struct.unpack_from(">I", service.asked) == (len(service.asked) - 4,)
    assert service.closed


@pytest.mark.parametrize(
    "service",
    [QuoteService(b""), QuoteService(bytes(700), error=0x12001), QuoteService(b"q" * 9, cut=1)],
)
def test_tdx_guest_bad_answer_is_not_evidence(service: QuoteService) -> None:
    attester = TdxGuestAttester(
        kernel=Pseudo(device=td_report), connect=lambda: service, sleep=Pauses()
    )
    with pytest.raises(UnavailableError) as caught:
        attester.evidence(DATA)
    assert caught.value.reasons[0].code == "attester.qgs"


def test_tdx_guest_without_a_quote_service_says_where_it_should_be() -> None:
    def refuse() -> QuoteService:
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    attester = TdxGuestAttester(kernel=Pseudo(device=td_report), connect=refuse, sleep=Pauses())
    with pytest.raises(UnavailableError, match="4050"):
        attester.evidence(DATA)


def nsm(answer: bytes) -> Callable[[int, bytearray], None]:
    def ioctl(request: int, argument: bytearray) -> None:
        assert request == NSM_REQUEST
        message = NsmMessage.from_buffer(argument)
        asked = cbor2.loads(ctypes.string_at(message.request, message.request_length))
        assert asked["Attestation"]["user_data"] == DATA
        assert message.response_length >= len(answer)
        ctypes.memmove(message.response, answer, len(answer))
        message.response_length = len(answer)

    return ioctl


def test_nitro_gives_the_recorded_document() -> None:
    document = recorded("nitro", "production", "document.cbor")
    kernel = Pseudo(device=nsm(cbor2.dumps({"Attestation": {"document": document}})))
    evidence = NitroAttester(kernel=kernel, sleep=Pauses()).evidence(DATA)
    assert evidence == Evidence(tee=Tee.NITRO, documents={"document": document})


@pytest.mark.parametrize(
    "answer",
    [
        cbor2.dumps({"Error": "InternalError"}),
        cbor2.dumps({"Attestation": {}}),
        cbor2.dumps({"Attestation": None}),
        cbor2.dumps([1]),
        cbor2.dumps({"Attestation": {"document": bytes(500)}})[:-100],
        b"",
    ],
)
def test_nitro_error_or_short_answer_is_not_evidence(answer: bytes) -> None:
    with pytest.raises(UnavailableError):
        NitroAttester(kernel=Pseudo(device=nsm(answer)), sleep=Pauses()).evidence(DATA)


# --- detection ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "kind", "tee"),
    [
        ([GRAMINE_ATTESTATION / "attestation_type"], GramineAttester, Tee.SGX),
        ([NSM], NitroAttester, Tee.NITRO),
        ([SEV_GUEST], SevGuestAttester, Tee.SNP),
        ([TDX_GUEST], TdxGuestAttester, Tee.TDX),
        ([GRAMINE_ATTESTATION / "attestation_type", TDX_GUEST], GramineAttester, Tee.SGX),
    ],
)
def test_detection_takes_what_is_there(files: list[Path], kind: type, tee: Tee) -> None:
    choice = detect.choose(None, clock=SystemClock(), kernel=Pseudo(dict.fromkeys(files, b"")))
    assert isinstance(choice.attester, kind)
    assert choice.attester.tee is tee
    assert len(choice.found) == len(files)
    assert "is there" in choice.why


def test_detection_prefers_configfs_to_the_device(tmp_path: Path) -> None:
    class Both(Configfs):
        def exists(self, path: Path) -> bool:
            return path == SEV_GUEST or super().exists(path)

    fs = Both(tmp_path, "sev_guest", bytes(1184))
    choice = detect.choose(None, clock=SystemClock(), kernel=fs)
    assert isinstance(choice.attester, TsmAttester)
    assert len(choice.found) == 2
    assert "1 more" in choice.why


def test_detection_takes_the_door_that_was_asked_for() -> None:
    kernel = Pseudo({NSM: b"", TDX_GUEST: b""})
    choice = detect.choose(Tee.TDX, clock=SystemClock(), kernel=kernel)
    assert isinstance(choice.attester, TdxGuestAttester)
    assert "asked" in choice.why


def test_hardware_that_is_not_there_is_never_replaced_by_simulation() -> None:
    with pytest.raises(ConfigurationError, match="no TEE at all"):
        detect.choose(Tee.SNP, clock=SystemClock(), kernel=Pseudo())


def test_real_files_fail_with_a_reason(tmp_path: Path) -> None:
    kernel = Kernel()
    with pytest.raises(ConfigurationError):
        kernel.read(tmp_path / "none")
    with pytest.raises(UnavailableError):
        kernel.ioctl(Path("/dev/null"), NSM_REQUEST, bytearray(32))
    with pytest.raises(UnavailableError):
        kernel.write(Path("/dev/full"), b"x")
    with pytest.raises(UnavailableError, match="does not end"):
        kernel.read(Path("/dev/zero"))
