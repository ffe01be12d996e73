"""The software platform on disk, its measurement, and the attester that puts them together."""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import dcap_qvl
import pytest
from cryptography import x509

import aigovtool
from aigovtool.attestation.dcap.pck import read_pck_extension
from aigovtool.attestation.dcap.quote import TdReport, parse_quote
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.policy import Policy, parse_policy, write_policy
from aigovtool.attestation.verify import judge
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.attester.simulated import SimulatedAttester
from aigovtool.errors import AppraisalError, ConfigurationError, ConflictError
from aigovtool.simulation.authority import COMPONENTS, FMSPC, PCE_SVN, load_authority
from aigovtool.simulation.measure import measure
from aigovtool.simulation.platform import (
    COLLATERAL_LIFE,
    SimulatedPlatform,
    platform_directory,
)
from aigovtool.simulation.policy import simulated_policy
from tests.attestation.simulation import MEASUREMENT, NOW, REPORT_DATA, platform


class FixedClock:
    """A clock that stands at `NOW`."""

    def now(self) -> datetime:
        return NOW

    def monotonic_s(self) -> float:
        return 0.0


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class TestOnDisk:
    def test_what_was_created_is_loaded(self, tmp_path: Path) -> None:
        directory = tmp_path / "a" / "platform"

        created = SimulatedPlatform.create(directory, now=NOW)

        assert SimulatedPlatform.load(directory).root_sha256 == created.root_sha256
        assert os.listdir(directory.parent) == ["platform"]

    def test_private_keys_are_for_their_owner_alone(self, tmp_path: Path) -> None:
        SimulatedPlatform.create(tmp_path / "platform", now=NOW)

        keys = list((tmp_path / "platform").glob("*.key"))
        assert len(keys) == 4
        assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}

    def test_a_key_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        SimulatedPlatform.create(tmp_path / "platform", now=NOW)
        (tmp_path / "platform" / "pck.key").chmod(0o644)

        with pytest.raises(ConfigurationError, match="chmod 600"):
            SimulatedPlatform.load(tmp_path / "platform")

    def test_an_existing_platform_is_never_replaced(self, tmp_path: Path) -> None:
        directory = tmp_path / "platform"
        SimulatedPlatform.create(directory, now=NOW)
        before = contents(directory)

        with pytest.raises(ConflictError):
            SimulatedPlatform.create(directory, now=NOW)

        assert contents(directory) == before
        assert os.listdir(tmp_path) == ["platform"]

    def test_no_start_makes_what_should_exist(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="custodian init --simulated"):
            SimulatedPlatform.load(tmp_path / "platform")

        assert not (tmp_path / "platform").exists()

    @pytest.mark.parametrize("name", ["root.pem", "root.key", "pck.key", "tcb_signing.pem"])
    def test_a_missing_file(self, tmp_path: Path, name: str) -> None:
        SimulatedPlatform.create(tmp_path / "platform", now=NOW)
        (tmp_path / "platform" / name).unlink()

        with pytest.raises(ConfigurationError, match=name.split(".", maxsplit=1)[0]):
            load_authority(tmp_path / "platform")

    def test_a_key_of_another_certificate(self, tmp_path: Path) -> None:
        SimulatedPlatform.create(tmp_path / "platform", now=NOW)
        (tmp_path / "platform" / "pck.key").write_bytes(
            (tmp_path / "platform" / "root.key").read_bytes()
        )

        with pytest.raises(ConfigurationError, match="belong together"):
            load_authority(tmp_path / "platform")

    def test_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")

        with pytest.raises(ConfigurationError):
            SimulatedPlatform.create(tmp_path / "file" / "platform", now=NOW)

    def test_where_it_lives(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        monkeypatch.delenv("AIGOVTOOL_SIMULATED_PLATFORM", raising=False)
        assert platform_directory() == tmp_path / "aigovtool" / "simulated-platform"

        monkeypatch.setenv("AIGOVTOOL_SIMULATED_PLATFORM", str(tmp_path / "mine"))
        assert platform_directory() == tmp_path / "mine"


class TestFormats:
    def test_others_read_the_quote_as_tdx(self) -> None:
        quote = dcap_qvl.parse_quote(platform().quote(MEASUREMENT.mr_td, REPORT_DATA))

        assert quote.quote_type() == "TDX"
        assert quote.header.version == 4
        assert bytes(quote.report.mr_td) == MEASUREMENT.mr_td
        assert bytes(quote.report.report_data) == REPORT_DATA
        assert quote.fmspc() == FMSPC.hex().upper()

    def test_the_sgx_extension_reads_back(self) -> None:
        chain = parse_quote(platform().quote(MEASUREMENT.mr_td, REPORT_DATA)).pck_chain_pem
        assert chain is not None

        extension = read_pck_extension(x509.load_pem_x509_certificates(chain)[0])

        assert extension.cpu_svn == bytes(COMPONENTS)
        assert (extension.pce_svn, extension.pce_id) == (PCE_SVN, b"\0\0")
        assert extension.fmspc == FMSPC
        assert len(extension.ppid) == 16
        assert extension.kind == "standard"

    def test_the_quote_says_what_it_was_asked_to(self) -> None:
        report = parse_quote(platform().quote(MEASUREMENT.mr_td, REPORT_DATA)).report

        assert isinstance(report, TdReport)
        assert (report.mr_td, report.report_data) == (MEASUREMENT.mr_td, REPORT_DATA)

    def test_two_platforms_have_two_roots_and_two_names(self) -> None:
        assert platform("one").root_sha256 != platform("two").root_sha256

    def test_collateral_is_signed_anew_at_half_its_life(self) -> None:
        fresh = SimulatedPlatform.in_memory(now=NOW)

        first = fresh.endorsements(NOW)

        assert fresh.endorsements(NOW + COLLATERAL_LIFE / 3) is first
        assert fresh.endorsements(NOW + COLLATERAL_LIFE / 2) is not first
        assert fresh.endorsements(NOW - timedelta(days=1)) is not first


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a copy of the installed package, at another path."""
    source = Path(aigovtool.__path__[0])
    copy = tmp_path / "elsewhere" / "aigovtool"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


class TestMeasurement:
    def test_the_path_does_not_matter(self, package: Path) -> None:
        assert measure(package).mr_td == measure(package.rename(package.parent / "other")).mr_td

    def test_it_is_that_of_the_running_code(self) -> None:
        measurement = measure()

        assert len(measurement.mr_td) == 48
        assert any(line.startswith("file simulation/measure.py ") for line in measurement.lines)
        assert any(line.startswith("interpreter cpython ") for line in measurement.lines)
        for name in ("cryptography", "dcap-qvl", "onnxruntime", "numpy", "cffi"):
            assert any(line.startswith(f"distribution {name} ") for line in measurement.lines)

    @pytest.mark.parametrize("name", ["errors.py", "enclave/attester/simulated.py", "py.typed"])
    def test_a_changed_file_changes_it(self, package: Path, name: str) -> None:
        before = measure(package)

        with (package / name).open("ab") as file:
            file.write(b"\n")

        after = measure(package)
        assert after.mr_td != before.mr_td
        changed = {line.split()[1] for line in set(before.lines) ^ set(after.lines)}
        assert changed == {name}

    def test_an_added_file_changes_it(self, package: Path) -> None:
        before = measure(package)

        (package / "enclave" / "backdoor.so").write_bytes(b"")

        assert measure(package).mr_td != before.mr_td

    def test_a_renamed_file_changes_it(self, package: Path) -> None:
        before = measure(package)

        (package / "ids.py").rename(package / "ids2.py")

        assert measure(package).mr_td != before.mr_td

    def test_caches_do_not_change_it(self, package: Path) -> None:
        before = measure(package)

        (package / "__pycache__").mkdir()
        (package / "__pycache__" / "errors.cpython-311.pyc").write_bytes(b"cache")

        assert measure(package) == before

    def test_an_unreadable_package(self, tmp_path: Path) -> None:
        loop = tmp_path / "package"
        loop.mkdir()
        (loop / "fifo").symlink_to("/proc/self/mem")

        with pytest.raises(ConfigurationError, match="measured"):
            measure(loop)


class TestAttester:
    def test_evidence_is_accepted_by_the_policy_made_for_it(self, tmp_path: Path) -> None:
        SimulatedPlatform.create(tmp_path / "platform", now=NOW)
        attester: Attester = SimulatedAttester.open(
            clock=FixedClock(), directory=tmp_path / "platform"
        )
        root = SimulatedPlatform.load(tmp_path / "platform").root_sha256
        written = write_policy(Policy(accept=(simulated_policy(root, measure()),), custodian=None))

        result = judge(
            attester.evidence(REPORT_DATA),
            attester.endorsements(),
            parse_policy(written.encode()),
            expected_report_data=REPORT_DATA,
            now=NOW,
        )

        assert attester.tee is Tee.SIMULATED
        assert "protects nothing" in attester.describe()
        assert result.measurement == measure().mr_td.hex()

    def test_other_code_is_refused_by_it(self) -> None:
        attester = SimulatedAttester(platform(), clock=FixedClock(), measurement=MEASUREMENT)
        accept = simulated_policy(platform().root_sha256, measure())

        with pytest.raises(AppraisalError) as caught:
            judge(
                attester.evidence(REPORT_DATA),
                attester.endorsements(),
                Policy(accept=(accept,), custodian=None),
                expected_report_data=REPORT_DATA,
                now=NOW,
            )

        assert [reason.code for reason in caught.value.reasons] == ["tdx.mr_td"]

    def test_without_a_platform(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError):
            SimulatedAttester.open(clock=FixedClock(), directory=tmp_path / "nowhere")
