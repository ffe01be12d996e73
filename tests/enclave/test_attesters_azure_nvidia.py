"""
Attesters for Azure, NVIDIA and both, against stand-ins that answer with recorded bytes.

The TPM is a stand-in of the device: it reads real commands, byte by byte, and refuses any that are
not as the TCG's library has them. NVML is NVIDIA's own binding with other functions behind it. What
is not shown here, and cannot be without the hardware: that Azure's paravisor and NVIDIA's driver
behave as the stand-ins do.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import http.client
import json
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aigovtool.attestation.azure.layout import parse_hcl_report, parse_runtime_data
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.tpm2.layout import Hash
from aigovtool.attestation.tpm2.verify import qualifying_data
from aigovtool.attestation.verify import verify
from aigovtool.clock import SystemClock
from aigovtool.enclave.attester import detect, imds
from aigovtool.enclave.attester.azure import (
    ATTESTATION_KEY,
    HCL_REPORT_INDEX,
    REFRESH_ATTEMPTS,
    USER_DATA_INDEX,
    AzureAttester,
)
from aigovtool.enclave.attester.composite import CompositeAttester
from aigovtool.enclave.attester.imds import Imds
from aigovtool.enclave.attester.kernel import Kernel
from aigovtool.enclave.attester.nvidia import NVIDIA_CONTROL, NvidiaAttester, load_nvml
from aigovtool.enclave.attester.retry import ATTEMPTS
from aigovtool.enclave.attester.tdx_guest import TDX_GUEST
from aigovtool.enclave.attester.tpm import (
    NV_CHUNK_BYTES,
    TPM_RESOURCE_MANAGER,
    MissingHandleError,
    Tpm,
    device,
)
from aigovtool.errors import ConfigurationError, MalformedError, UnavailableError
from tests.attestation.azure_nvidia_vectors import (
    Case,
    azure_parts,
    case_of,
    composite_parts,
    nvidia_parts,
)

DATA = bytes(range(64))
OWNER = 0x40000001
RETRY, YIELDED, NV_RATE, AUTH_FAIL, NO_HANDLE, VALUE = 0x922, 0x908, 0x920, 0x98E, 0x18B, 0x1C4
VECTORS = ["azure-snp/milan", "azure-snp/genoa", "azure-tdx/preview", "azure-tdx/ak-chain"]


class Pauses(list[float]):
    """A sleep that only remembers."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


class Refused(Exception):
    """A response code instead of a response."""

    def __init__(self, code: int) -> None:
        self.code = code


class PseudoTpm:
    """
    A TPM with NV indices, one attestation key and recorded quotes, behind real commands.

    Args:
        nv: what the indices hold.
        public: TPMT_PUBLIC of the key at `ATTESTATION_KEY`.
        quoted: TPMS_ATTEST and TPMT_SIGNATURE.
        pcrs: of the SHA-256 bank.

    Attributes:
        faults: response codes given to the next commands instead of doing them.
        spoil: changes the bytes of responses on their way out.
        asked: qualifying data of each quote.
    """

    def __init__(
        self,
        nv: dict[int, bytes],
        *,
        public: bytes = b"",
        quoted: tuple[bytes, bytes] = (b"", b""),
        pcrs: tuple[bytes, ...] = (),
    ) -> None:
        self.nv = nv
        self.public = public
        self.quoted = quoted
        self.pcrs = pcrs
        self.faults: list[int] = []
        self.spoil: Callable[[int, bytes], bytes] = lambda _command, response: response
        self.asked: list[bytes] = []
        self.commands: list[int] = []

    def __call__(self, command: bytes) -> bytes:
        tag, size, code = struct.unpack_from(">HII", command)
        assert size == len(command)
        self.commands.append(code)
        try:
            if self.faults:
                raise Refused(self.faults.pop(0))
            body = self._do(code, tag, command[10:])
        except Refused as refused:
            return struct.pack(">HII", 0x8001, 10, refused.code)
        if tag == 0x8002:
            body = struct.pack(">I", len(body)) + body + bytes(2) + b"\1" + bytes(2)
        return self.spoil(code, struct.pack(">HII", tag, 10 + len(body), 0) + body)

    def _do(self, code: int, tag: int, body: bytes) -> bytes:
        handles = {0x12A: 1, 0x137: 2, 0x14E: 2, 0x169: 1, 0x158: 1, 0x173: 1, 0x17E: 0}[code]
        names = struct.unpack_from(f">{handles}I", body)
        body = body[4 * handles :]
        assert tag == (0x8002 if code in (0x12A, 0x137, 0x14E, 0x158) else 0x8001)
        if tag == 0x8002:
            size, session, nonce, _, hmac = struct.unpack_from(">IIHBH", body)
            assert (size, session, nonce, hmac) == (9, 0x40000009, 0, 0)
            body = body[13:]
        if code in (0x137, 0x14E):
            assert names[0] == OWNER
            self._index(names[1])
        answer = {
            0x12A: self._define,
            0x137: lambda rest: self._write(names[1], rest),
            0x14E: lambda rest: self._read(names[1], rest),
            0x169: lambda rest: self._nv_public(names[0], rest),
            0x173: lambda rest: self._key_public(names[0], rest),
            0x158: lambda rest: self._quote(names[0], rest),
            0x17E: self._pcr_read,
        }[code](body)
        return answer

    def _index(self, index: int) -> bytes:
        if index not in self.nv:
            raise Refused(NO_HANDLE)
        return self.nv[index]

    def _define(self, body: bytes) -> bytes:
        auth, size, index, algorithm, attributes, policy, data = struct.unpack(">HHIHIHH", body)
        assert (auth, size, algorithm, policy) == (0, 14, 0x000B, 0)
        assert attributes == (1 << 1) | (1 << 17)
        self.nv[index] = bytes(data)
        return b""

    def _write(self, index: int, body: bytes) -> bytes:
        size = int.from_bytes(body[:2])
        data, offset = body[2 : 2 + size], int.from_bytes(body[2 + size :])
        assert len(body) == size + 4
        assert (offset, size) == (0, len(self.nv[index]))
        self.nv[index] = data
        return b""

    def _read(self, index: int, body: bytes) -> bytes:
        size, offset = struct.unpack(">HH", body)
        assert size <= NV_CHUNK_BYTES
        if offset + size > len(self.nv[index]):
            raise Refused(0x146)  # TPM_RC_NV_RANGE
        part = self.nv[index][offset : offset + size]
        return struct.pack(">H", len(part)) + part

    def _nv_public(self, index: int, body: bytes) -> bytes:
        assert body == b""
        size = len(self._index(index))
        public = struct.pack(">IHIHH", index, 0x000B, 0x20020002, 0, size)
        return struct.pack(">H", len(public)) + public + struct.pack(">H", 34) + bytes(34)

    def _key_public(self, key: int, body: bytes) -> bytes:
        assert body == b""
        if key != ATTESTATION_KEY or not self.public:
            raise Refused(NO_HANDLE)
        return struct.pack(">H", len(self.public)) + self.public + bytes(4)

    def _quote(self, key: int, body: bytes) -> bytes:
        assert key == ATTESTATION_KEY
        size = int.from_bytes(body[:2])
        self.asked.append(body[2 : 2 + size])
        assert body[2 + size :] == struct.pack(">HIHB", 0x0010, 1, 0x000B, 3) + b"\xff\xff\xff"
        message, signature = self.quoted
        return struct.pack(">H", len(message)) + message + signature

    def _pcr_read(self, body: bytes) -> bytes:
        count, algorithm, octets = struct.unpack_from(">IHB", body)
        bitmap = int.from_bytes(body[7:], "little")
        assert (count, algorithm, octets, len(body)) == (1, 0x000B, 3, 10)
        chosen = [self.pcrs[index] for index in range(24) if bitmap >> index & 1]
        assert len(chosen) <= 8
        digests = b"".join(struct.pack(">H", len(digest)) + digest for digest in chosen)
        return struct.pack(">I", 7) + body + struct.pack(">I", len(chosen)) + digests


class PseudoImds(Imds):
    """The metadata service with a recorded quote and certificates."""

    def __init__(self, quote: bytes = b"", certificates: tuple[bytes, bytes] | None = None) -> None:
        self.answer = quote
        self.certificates = certificates
        self.reports: list[bytes] = []

    def quote(self, td_report: bytes) -> bytes:
        self.reports.append(td_report)
        return self.answer

    def amd_certification(self) -> tuple[bytes, bytes]:
        if self.certificates is None:
            raise UnavailableError("no answer")
        return self.certificates


def public_of(case: Case) -> bytes:
    """TPMT_PUBLIC of the key that the recorded report vouches for."""
    runtime = parse_runtime_data(parse_hcl_report(case.file("hcl_report.bin")).runtime_data)
    n = runtime.attestation_key.n.to_bytes(256)
    head = struct.pack(">HHIHHHHHI", 1, 0x000B, 0x00050072, 0, 0x0010, 0x0014, 0x000B, 2048, 0)
    return head + struct.pack(">H", len(n)) + n


def tpm_of(case: Case) -> PseudoTpm:
    signature = case.file("tpm_quote.sig")
    return PseudoTpm(
        {HCL_REPORT_INDEX: case.file("hcl_report.bin")},
        public=public_of(case),
        quoted=(
            case.file("tpm_quote.msg"),
            struct.pack(">HHH", 0x0014, 0x000B, len(signature)) + signature,
        ),
        pcrs=tuple(bytes.fromhex(value) for value in json.loads(case.file("tpm_pcrs_sha256.json"))),
    )


@dataclass
class Machine:
    """A recorded Azure VM."""

    case: Case
    tpm: PseudoTpm
    imds: PseudoImds
    pauses: Pauses
    attester: AzureAttester


def machine(vector: str = "azure-snp/milan") -> Machine:
    case = case_of(vector)
    tpm, pauses = tpm_of(case), Pauses()
    tee = Tee(vector.partition("/")[0])
    pseudo = PseudoImds(case.file("quote.bin") if tee is Tee.AZURE_TDX else b"")
    # the recorded report carries zeros as the guest's data, so these are what we write
    attester = AzureAttester(tee, tpm=Tpm(tpm), imds=pseudo, random=bytes, sleep=pauses)
    return Machine(case, tpm, pseudo, pauses, attester)


def code_of(caught: pytest.ExceptionInfo[Any]) -> str:
    code: str = caught.value.reasons[0].code
    return code


# --- Azure -------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS)
def test_azure_gives_the_recorded_evidence_and_it_verifies(vector: str) -> None:
    vm = machine(vector)
    evidence = vm.attester.evidence(DATA)
    recorded, endorsements = azure_parts(vm.case)
    pcrs = dict(evidence.documents).pop("tpm_pcrs")
    assert json.loads(pcrs) == json.loads(recorded.documents["tpm_pcrs"].lower())
    assert {**evidence.documents, "tpm_pcrs": recorded.documents["tpm_pcrs"]} == {
        **recorded.documents
    }
    assert verify(evidence, endorsements, now=vm.case.now).measurement
    assert vm.tpm.asked == [qualifying_data(DATA)]
    assert vm.tpm.nv[USER_DATA_INDEX] == bytes(64)
    assert vm.pauses == []


def test_azure_asks_the_hardware_anew_once_and_the_vtpm_for_each_nonce() -> None:
    vm = machine("azure-tdx/ak-chain")
    other = bytes(64)
    vm.attester.evidence(DATA)
    vm.attester.evidence(other)
    assert vm.tpm.commands.count(0x137) == vm.tpm.commands.count(0x12A) == 1
    assert vm.tpm.asked == [qualifying_data(DATA), qualifying_data(other)]
    assert len(vm.imds.reports) == 1  # the same TD report needs no second quote
    hcl = parse_hcl_report(vm.case.file("hcl_report.bin"))
    assert vm.imds.reports == [hcl.hardware_report[:1024]]


def test_azure_uses_the_index_that_is_there() -> None:
    vm = machine()
    vm.tpm.nv[USER_DATA_INDEX] = b"\1" * 64
    vm.attester.evidence(DATA)
    assert 0x12A not in vm.tpm.commands
    assert vm.tpm.nv[USER_DATA_INDEX] == bytes(64)


def test_azure_does_not_touch_an_index_of_another_size() -> None:
    vm = machine()
    vm.tpm.nv[USER_DATA_INDEX] = b"somebody else's"
    with pytest.raises(ConfigurationError, match="another size"):
        vm.attester.evidence(DATA)
    assert vm.tpm.nv[USER_DATA_INDEX] == b"somebody else's"


def test_azure_waits_for_the_paravisor_and_not_for_ever() -> None:
    vm = machine()
    late = AzureAttester(
        Tee.AZURE_SNP, tpm=Tpm(vm.tpm), random=lambda size: b"\5" * size, sleep=vm.pauses
    )
    with pytest.raises(UnavailableError, match="does not renew"):
        late.evidence(DATA)
    assert len(vm.pauses) == REFRESH_ATTEMPTS
    assert vm.tpm.asked == []


@pytest.mark.parametrize("fault", [RETRY, YIELDED, NV_RATE])
def test_azure_tries_again_while_the_tpm_is_busy(fault: int) -> None:
    vm = machine()
    vm.attester.evidence(DATA)
    vm.tpm.faults = [fault, fault]
    vm.attester.evidence(DATA)
    assert len(vm.pauses) == 2


def test_a_tpm_that_stays_busy_is_unavailable() -> None:
    vm = machine()
    vm.tpm.faults = [RETRY] * ATTEMPTS
    with pytest.raises(UnavailableError, match="busy") as caught:
        vm.attester.evidence(DATA)
    assert code_of(caught) == "attester.busy"


def test_a_tpm_with_a_password_is_a_matter_of_configuration() -> None:
    vm = machine()
    vm.tpm.nv[USER_DATA_INDEX] = bytes(64)
    vm.tpm.faults = []
    plain = vm.tpm.__call__

    def locked(command: bytes) -> bytes:
        if int.from_bytes(command[6:10]) == 0x137:
            vm.tpm.faults = [AUTH_FAIL]
        return plain(command)

    attester = AzureAttester(Tee.AZURE_SNP, tpm=Tpm(locked), random=bytes, sleep=vm.pauses)
    with pytest.raises(ConfigurationError, match="password") as caught:
        attester.evidence(DATA)
    assert code_of(caught) == "attester.permission"
    assert vm.pauses == []  # waiting would not mend it


def test_a_machine_without_a_paravisors_report_is_no_confidential_vm() -> None:
    vm = machine()
    del vm.tpm.nv[HCL_REPORT_INDEX]
    with pytest.raises(ConfigurationError, match="no Azure confidential VM"):
        vm.attester.evidence(DATA)


def test_hardware_of_the_other_kind_is_refused() -> None:
    vm = machine("azure-snp/milan")
    attester = AzureAttester(Tee.AZURE_TDX, tpm=Tpm(vm.tpm), random=bytes, sleep=vm.pauses)
    with pytest.raises(ConfigurationError, match="other hardware"):
        attester.evidence(DATA)


def test_a_key_that_the_paravisor_does_not_vouch_for_is_not_asked_to_quote() -> None:
    vm = machine("azure-snp/milan")
    vm.tpm.public = public_of(case_of("azure-snp/genoa"))
    with pytest.raises(ConfigurationError, match="vouches"):
        vm.attester.evidence(DATA)
    assert vm.tpm.asked == []


def test_a_missing_key_is_a_matter_of_configuration() -> None:
    vm = machine()
    vm.tpm.public = b""
    with pytest.raises(MissingHandleError):
        vm.attester.evidence(DATA)


def test_pcrs_that_change_before_the_quote_are_read_again() -> None:
    vm = machine()
    before = vm.tpm.pcrs
    vm.tpm.pcrs = (b"\xff" * 32, *before[1:])
    vm.attester._sleep = lambda _pause: setattr(vm.tpm, "pcrs", before)
    vm.attester.evidence(DATA)
    assert len(vm.tpm.asked) == 2
    vm.tpm.pcrs = (b"\xff" * 32, *before[1:])
    vm.attester._sleep = vm.pauses
    with pytest.raises(UnavailableError) as caught:
        vm.attester.evidence(DATA)
    assert code_of(caught) == "attester.pcrs"


def test_a_report_renewed_while_it_is_read_is_read_again() -> None:
    vm = machine("azure-snp/milan")
    vm.attester.evidence(DATA)
    whole = vm.tpm.nv[HCL_REPORT_INDEX]
    torn = whole[:1500] + whole[1500:].replace(b'"00000000', b'"11111111')
    assert torn != whole
    vm.tpm.nv[HCL_REPORT_INDEX] = torn
    vm.attester._sleep = lambda _pause: vm.tpm.nv.update({HCL_REPORT_INDEX: whole})
    assert vm.attester.evidence(DATA).documents["hcl_report"] == whole
    vm.tpm.nv[HCL_REPORT_INDEX] = torn
    vm.attester._sleep = vm.pauses
    with pytest.raises(UnavailableError, match="renewed") as caught:
        vm.attester.evidence(DATA)
    assert code_of(caught) == "attester.hcl"


@pytest.mark.parametrize("command", [0x14E, 0x169, 0x158, 0x173, 0x17E])
@pytest.mark.parametrize("keep", [0, 9, 10, 13, -1])
def test_a_short_response_is_not_evidence(command: int, keep: int) -> None:
    vm = machine()
    vm.tpm.spoil = lambda code, response: response[:keep] if code == command else response
    with pytest.raises(UnavailableError) as caught:
        vm.attester.evidence(DATA)
    assert code_of(caught) == "attester.short_read"


@pytest.mark.parametrize("command", [0x14E, 0x158, 0x173, 0x17E])
def test_a_response_of_honest_length_and_short_content_is_not_evidence(command: int) -> None:
    def shorten(code: int, response: bytes) -> bytes:
        if code != command:
            return response
        body = response[10:-8]
        return struct.pack(">HII", int.from_bytes(response[:2]), 10 + len(body), 0) + body

    vm = machine()
    vm.tpm.spoil = shorten
    with pytest.raises(UnavailableError):
        vm.attester.evidence(DATA)


@pytest.mark.parametrize("raw", [b"", b"HCLA", bytes(2600)])
def test_what_is_no_report_of_a_paravisor_is_not_evidence(raw: bytes) -> None:
    vm = machine()
    vm.tpm.nv[HCL_REPORT_INDEX] = raw
    with pytest.raises(UnavailableError) as caught:
        vm.attester.evidence(DATA)
    assert code_of(caught) == "attester.hcl"


def test_an_index_that_claims_to_be_huge_is_not_read() -> None:
    vm = machine()
    vm.tpm.nv[HCL_REPORT_INDEX] = bytes(17 << 10)
    with pytest.raises(UnavailableError) as caught:
        vm.attester.evidence(DATA)
    assert code_of(caught) == "attester.too_long"
    assert 0x14E not in vm.tpm.commands


def test_another_refusal_of_the_tpm_names_the_code() -> None:
    tpm = PseudoTpm({1: b"x"})
    tpm.faults = [VALUE]
    with pytest.raises(UnavailableError, match="0x1c4"):
        Tpm(tpm).nv_size(1)


def test_pcrs_of_another_selection_are_not_taken() -> None:
    vm = machine()
    vm.tpm.pcrs = tuple(value[:20] for value in vm.tpm.pcrs)
    with pytest.raises(UnavailableError, match="other PCRs"):
        Tpm(vm.tpm).pcrs(bank=Hash.SHA256)


def test_a_short_quote_from_the_host_is_not_evidence() -> None:
    vm = machine("azure-tdx/preview")
    vm.imds.answer = bytes(631)
    with pytest.raises(UnavailableError, match="cut short"):
        vm.attester.evidence(DATA)


def test_two_threads_do_not_disturb_each_other() -> None:
    vm = machine()
    results: list[Evidence] = []
    threads = [
        threading.Thread(target=lambda: results.append(vm.attester.evidence(DATA)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert vm.tpm.commands.count(0x137) == 1


def test_the_host_hands_over_its_certificates_or_nothing() -> None:
    vm = machine()
    assert vm.attester.endorsements() == Endorsements(tee=Tee.AZURE_SNP)
    vm.imds.certificates = (b"vcek", b"chain")
    assert vm.attester.endorsements().documents == {"vcek": b"vcek", "ca_chain": b"chain"}
    assert machine("azure-tdx/preview").attester.endorsements().documents == {}


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_is_never_padded_or_cut(size: int) -> None:
    vm = machine()
    for attester in (
        vm.attester,
        NvidiaAttester(),
        CompositeAttester(vm.attester, NvidiaAttester()),
    ):
        with pytest.raises(MalformedError):
            attester.evidence(bytes(size))
    assert vm.tpm.commands == []


def test_the_device_itself_missing_forbidden_or_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tpm(device(tmp_path / "tpmrm0")).nv_size(1)
    assert code_of(caught) == "attester.missing"
    with pytest.raises(UnavailableError) as silent:
        Tpm(device(Path("/dev/null"))).nv_size(1)
    assert code_of(silent) == "attester.short_read"
    with pytest.raises(UnavailableError):
        Tpm(device(Path("/dev/full"))).nv_size(1)

    def forbid(*_: object) -> int:
        raise PermissionError(errno.EACCES, "")

    monkeypatch.setattr("aigovtool.enclave.attester.tpm.os.open", forbid)
    with pytest.raises(ConfigurationError) as forbidden:
        Tpm(device()).nv_size(1)
    assert code_of(forbidden) == "attester.permission"


# --- the metadata service ----------------------------------------------------------------------


class Answer:
    """What `http.client` would give."""

    def __init__(self, body: bytes, status: int = 200, fault: OSError | None = None) -> None:
        self.body = body
        self.status = status
        self.fault = fault
        self.asked: tuple[str, str, bytes | None, dict[str, str]] | None = None

    def request(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        if self.fault:
            raise self.fault
        self.asked = (method, url, body, headers or {})

    def getresponse(self) -> Any:
        return self

    def read(self, limit: int) -> bytes:
        return self.body[:limit]

    def close(self) -> None:
        pass


def imds_with(answer: Answer) -> Imds:
    service = Imds()
    service.connect = lambda: answer  # type: ignore[method-assign] # as any stand-in
    return service


@pytest.mark.parametrize("padding", ["", "=="])
def test_the_host_is_asked_for_a_quote_over_the_td_report(padding: str) -> None:
    quote = bytes(range(256))[:250]
    text = base64.urlsafe_b64encode(quote).decode().rstrip("=") + padding
    answer = Answer(json.dumps({"quote": text}).encode())
    assert imds_with(answer).quote(b"\xfb" * 1024) == quote
    assert answer.asked is not None
    method, url, body, headers = answer.asked
    assert (method, url) == ("POST", "/acc/tdquote")
    assert headers["Metadata"] == "true"
    report = json.loads(body or b"")["report"]
    assert base64.urlsafe_b64decode(report + "==") == b"\xfb" * 1024


def test_the_host_is_asked_for_certificates() -> None:
    answer = Answer(b'{"vcekCert":"v","certificateChain":"c","tcbm":"0"}')
    assert imds_with(answer).amd_certification() == (b"v", b"c")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"", fault=TimeoutError()),
        Answer(b"", fault=ConnectionRefusedError()),
        Answer(b"{}", status=429),
        Answer(b"{}"),
        Answer(b"not json"),
        Answer(b'{"quote":"a b"}'),
        Answer('{"quote":"é"}'.encode()),
        Answer(bytes(imds.MAX_ANSWER_BYTES + 1)),
    ],
)
def test_a_host_that_does_not_answer_is_unavailable(answer: Answer) -> None:
    with pytest.raises(UnavailableError) as caught:
        imds_with(answer).quote(bytes(1024))
    assert code_of(caught) == "attester.imds"
    with pytest.raises(UnavailableError):
        imds_with(answer).amd_certification()


def test_the_real_connection_goes_to_the_link_local_address() -> None:
    connection = Imds().connect()
    assert isinstance(connection, http.client.HTTPConnection)
    assert connection.host == "169.254.169.254"


# --- NVIDIA ------------------------------------------------------------------------------------

BUSY, FORBIDDEN, NO_DRIVER, NOT_SUPPORTED = 19, 4, 9, 3  # NVML_ERROR_IN_USE and others


class PseudoNvml:
    """
    The functions behind NVIDIA's own bindings, for GPUs with recorded reports.

    Args:
        devices: report and certificate chain of each GPU.

    Attributes:
        faults: error codes given to the next calls for a report.
        feature: confidential mode on (1) or off (0).
        keep: how many bytes of each report are there.
        nonces: what was asked.
        open: calls of init less calls of shutdown.
    """

    def __init__(self, devices: list[tuple[bytes, bytes]]) -> None:
        self.devices = devices
        self.faults: list[int] = []
        self.feature = 1
        self.keep: int | None = None
        self.renew = False
        self.nonces: list[bytes] = []
        self.open = 0

    def pointer(self, name: str) -> Callable[..., int]:
        functions: dict[str, Callable[..., int]] = {
            "nvmlInitWithFlags": self._init,
            "nvmlShutdown": self._shutdown,
            "nvmlSystemGetConfComputeState": self._state,
            "nvmlDeviceGetCount_v2": self._count,
            "nvmlDeviceGetHandleByIndex_v2": self._handle,
            "nvmlDeviceGetConfComputeGpuAttestationReport": self._report,
            "nvmlDeviceGetConfComputeGpuCertificate": self._certificate,
        }
        return functions[name]

    def _init(self, _flags: object) -> int:
        self.open += 1
        return 0

    def _shutdown(self) -> int:
        self.open -= 1
        return 0

    def _state(self, reference: Any) -> int:
        reference._obj.ccFeature = self.feature
        return 0

    def _count(self, reference: Any) -> int:
        reference._obj.value = len(self.devices)
        return 0

    def _handle(self, index: Any, reference: Any) -> int:
        ctypes.cast(reference, ctypes.POINTER(ctypes.c_void_p))[0] = index.value + 1
        return 0

    def _report(self, handle: Any, reference: Any) -> int:
        if self.faults:
            return self.faults.pop(0)
        answer = reference._obj
        nonce = bytes(answer.nonce)
        self.nonces.append(nonce)
        report = self.devices[self._number(handle)][0]
        if self.renew:  # as a GPU does; the signature is then of other bytes
            report = report[:4] + nonce + report[36:]
        report = report[: self.keep]
        answer.attestationReport[: len(report)] = list(report)
        answer.attestationReportSize = len(report)
        return 0

    def _certificate(self, handle: Any, reference: Any) -> int:
        chain = self.devices[self._number(handle)][1]
        reference._obj.attestationCertChain[: len(chain)] = list(chain)
        reference._obj.attestationCertChainSize = len(chain)
        return 0

    @staticmethod
    def _number(handle: Any) -> int:
        return int(ctypes.cast(handle, ctypes.c_void_p).value or 0) - 1


def gpus_of(
    monkeypatch: pytest.MonkeyPatch, evidence: Evidence, prefix: str = ""
) -> tuple[PseudoNvml, NvidiaAttester, Pauses]:
    """Put the recorded devices of *evidence* behind NVIDIA's bindings."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    documents = evidence.documents
    count = sum(1 for name in documents if name.endswith(".report"))
    nvml = PseudoNvml(
        [
            (documents[f"{prefix}device.{n}.report"], documents[f"{prefix}device.{n}.certificates"])
            for n in range(count)
        ]
    )
    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", lambda: None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", nvml.pointer)
    pauses = Pauses()
    return nvml, NvidiaAttester(sleep=pauses), pauses


def nonce_of(evidence: Evidence, name: str = "device.0.report") -> bytes:
    return evidence.documents[name][4:36]


@pytest.mark.parametrize("vector", ["nvidia/h100-full", "nvidia/h100-multi"])
def test_nvidia_gives_the_recorded_reports_and_they_verify(
    monkeypatch: pytest.MonkeyPatch, vector: str
) -> None:
    case = case_of(vector)
    recorded, endorsements = nvidia_parts(case)
    nvml, attester, pauses = gpus_of(monkeypatch, recorded)
    nonce = nonce_of(recorded)
    evidence = attester.evidence(bytes(32) + nonce)
    assert evidence == recorded
    assert verify(evidence, endorsements, now=case.now).report_data == nonce
    assert set(nvml.nonces) == {nonce}
    assert nvml.open == 0
    assert pauses == []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[PseudoNvml, NvidiaAttester, Pauses]:
    """One GPU that answers every nonce."""
    recorded, _ = nvidia_parts(case_of("nvidia/h100-full"))
    nvml, attester, pauses = gpus_of(monkeypatch, recorded)
    nvml.renew = True
    return nvml, attester, pauses


Gpu = tuple[PseudoNvml, NvidiaAttester, Pauses]


def test_nvidia_asks_with_the_end_of_the_report_data(gpu: Gpu) -> None:
    nvml, attester, _ = gpu
    evidence = attester.evidence(DATA)
    assert nvml.nonces == [DATA[32:]]
    assert nonce_of(evidence) == DATA[32:]


def test_nvidia_tries_again_while_busy(gpu: Gpu) -> None:
    nvml, attester, pauses = gpu
    nvml.faults = [BUSY, BUSY]
    attester.evidence(DATA)
    assert len(pauses) == 2
    assert nvml.open == 0


def test_a_gpu_that_stays_busy_is_unavailable(gpu: Gpu) -> None:
    nvml, attester, _ = gpu
    nvml.faults = [BUSY] * ATTEMPTS
    with pytest.raises(UnavailableError) as caught:
        attester.evidence(DATA)
    assert code_of(caught) == "attester.busy"
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (FORBIDDEN, "attester.permission"),
        (NO_DRIVER, "attester.missing"),
        (NOT_SUPPORTED, "attester.missing"),
    ],
)
def test_what_waiting_does_not_mend_is_told_at_once(gpu: Gpu, fault: int, code: str) -> None:
    nvml, attester, pauses = gpu
    nvml.faults = [fault]
    with pytest.raises(ConfigurationError) as caught:
        attester.evidence(DATA)
    assert code_of(caught) == code
    assert pauses == []
    assert nvml.open == 0


@pytest.mark.parametrize("keep", [0, 36, 100, -1])
def test_a_short_report_is_not_evidence(gpu: Gpu, keep: int) -> None:
    nvml, attester, _ = gpu
    nvml.keep = keep
    with pytest.raises(UnavailableError) as caught:
        attester.evidence(DATA)
    assert code_of(caught) == "attester.short_read"


def test_an_old_report_is_not_evidence(gpu: Gpu) -> None:
    nvml, attester, _ = gpu
    nvml.renew = False
    with pytest.raises(UnavailableError) as caught:
        attester.evidence(DATA)
    assert code_of(caught) == "attester.nvidia_nonce"


def test_a_chain_that_is_no_pem_is_not_evidence(gpu: Gpu) -> None:
    nvml, attester, _ = gpu
    nvml.devices = [(nvml.devices[0][0], bytes(100))]
    with pytest.raises(UnavailableError, match="no whole report"):
        attester.evidence(DATA)


def test_gpus_out_of_confidential_mode_are_refused(gpu: Gpu) -> None:
    nvml, attester, _ = gpu
    nvml.feature = 0
    with pytest.raises(ConfigurationError, match="confidential mode"):
        attester.evidence(DATA)
    assert nvml.nonces == []


@pytest.mark.parametrize("count", [0, 17])
def test_no_gpu_or_too_many(gpu: Gpu, count: int) -> None:
    nvml, attester, _ = gpu
    nvml.devices = nvml.devices * count
    with pytest.raises(ConfigurationError, match="no GPU"):
        attester.evidence(DATA)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_gpu_nonce_is_never_padded_or_cut(gpu: Gpu, size: int) -> None:
    nvml, attester, _ = gpu
    with pytest.raises(MalformedError):
        attester.answers(bytes(size))
    assert nvml.nonces == []


def test_without_the_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ConfigurationError, match=r"aigovtool\[nvidia\]"):
        load_nvml()


# --- both --------------------------------------------------------------------------------------


@dataclass
class RecordedCpu:
    """A confidential VM that gives one recorded quote."""

    tee: Tee
    quote: bytes

    def describe(self) -> str:
        return "recorded"

    def evidence(self, _report_data: bytes) -> Evidence:
        return Evidence(tee=self.tee, documents={"quote": self.quote})

    def endorsements(self) -> Endorsements:
        return Endorsements(tee=self.tee, documents={"tcb_info": b"{}"})


def test_both_give_the_recorded_composite_and_it_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("composite/tdx-h100")
    recorded, endorsements = composite_parts(case)
    nvml, gpu, _ = gpus_of(monkeypatch, recorded, prefix="nvidia.")
    cpu = RecordedCpu(Tee.TDX, recorded.documents["tdx.quote"])
    report_data = bytes(32) + nonce_of(recorded, "nvidia.device.0.report")
    attester = CompositeAttester(cpu, gpu)
    evidence = attester.evidence(report_data)
    assert evidence == recorded
    genuine = {n: b for n, b in endorsements.documents.items() if "bad_signature" not in n}
    claims = verify(evidence, Endorsements(tee=Tee.COMPOSITE, documents=genuine), now=case.now)
    assert claims.report_data[32:] == nvml.nonces[0]
    assert attester.endorsements().documents == {"tdx.tcb_info": b"{}"}


def test_on_azure_the_gpus_answer_the_hash_that_the_vtpm_carries(gpu: Gpu) -> None:
    nvml, gpus, _ = gpu
    evidence = CompositeAttester(machine("azure-snp/milan").attester, gpus).evidence(DATA)
    assert nvml.nonces == [qualifying_data(DATA)]
    assert {name.partition(".")[0] for name in evidence.documents} == {"azure-snp", "nvidia"}


def test_gpus_are_bound_to_nothing_but_a_confidential_vm() -> None:
    with pytest.raises(ConfigurationError, match="together"):
        CompositeAttester(RecordedCpu(Tee.NITRO, b""), NvidiaAttester())


# --- detection ---------------------------------------------------------------------------------


class Files(Kernel):
    """Files that are there, and what they hold."""

    def __init__(self, files: dict[Path, bytes]) -> None:
        self.files = files

    def exists(self, path: Path) -> bool:
        return path in self.files

    def read(self, path: Path) -> bytes:
        return self.files[path]


def azure_files(tag: bytes = detect.AZURE_CHASSIS_TAG + b"\n") -> dict[Path, bytes]:
    return {detect.CHASSIS_TAG: tag, TPM_RESOURCE_MANAGER: b""}


def choose(files: dict[Path, bytes], tpm: PseudoTpm, tee: Tee | None = None) -> detect.Choice:
    return detect.choose(tee, clock=SystemClock(), kernel=Files(files), tpm=Tpm(tpm))


@pytest.mark.parametrize("vector", VECTORS)
def test_detection_finds_an_azure_confidential_vm(vector: str) -> None:
    choice = choose(azure_files(), tpm_of(case_of(vector)))
    assert isinstance(choice.attester, AzureAttester)
    assert choice.attester.tee == vector.partition("/")[0]


def test_detection_prefers_azures_vtpm_to_the_guests_device() -> None:
    files = azure_files() | {TDX_GUEST: b""}
    choice = choose(files, tpm_of(case_of("azure-tdx/preview")))
    assert isinstance(choice.attester, AzureAttester)
    assert len(choice.found) == 2


def test_the_tpm_of_another_machine_is_not_asked() -> None:
    tpm = tpm_of(case_of("azure-snp/milan"))
    with pytest.raises(ConfigurationError, match="no TEE at all"):
        choose(azure_files(b"another make"), tpm, Tee.AZURE_SNP)
    assert tpm.commands == []


@pytest.mark.parametrize("fault", [NO_HANDLE, AUTH_FAIL, RETRY])
def test_an_azure_vm_whose_vtpm_has_no_report_offers_no_tee(fault: int) -> None:
    tpm = tpm_of(case_of("azure-snp/milan"))
    tpm.faults = [fault]
    with pytest.raises(ConfigurationError, match="no TEE at all"):
        choose(azure_files(), tpm, Tee.AZURE_SNP)


def test_gpus_are_taken_only_when_asked_for() -> None:
    files = {TDX_GUEST: b"", NVIDIA_CONTROL: b""}
    tpm = PseudoTpm({})
    assert choose(files, tpm).attester.tee is Tee.TDX
    choice = choose(files, tpm, Tee.COMPOSITE)
    assert isinstance(choice.attester, CompositeAttester)
    assert "with NVIDIA GPUs" in choice.attester.describe()
    assert len(choice.found) == 2


def test_gpus_alone_are_no_tee() -> None:
    with pytest.raises(ConfigurationError, match="no TEE at all"):
        choose({NVIDIA_CONTROL: b""}, PseudoTpm({}), Tee.COMPOSITE)
