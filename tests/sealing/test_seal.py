"""Sealing: what is on the disk afterwards, above all when something went wrong."""

from __future__ import annotations

import errno
import io
import os
import resource
import stat
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from aigovtool.errors import ConfigurationError, MalformedError, UnavailableError
from aigovtool.sealing import seal as seal_module
from aigovtool.sealing.chunked import CHUNK_BYTES
from aigovtool.sealing.manifest import VerifiedManifest
from aigovtool.sealing.seal import SourceFile, new_content_key, seal
from aigovtool.sealing.unseal import unseal_into
from tests.sealing.models import CREATED, CUSTODIAN, describe, make_sealed, write_files

CONTENT = {"model.onnx": b"\x11" * (3 * CHUNK_BYTES), "weights.bin": b"\x22" * 1000}


def seal_to(out: Path, sources: list[SourceFile], **changes: Any) -> VerifiedManifest:
    fields: dict[str, Any] = {
        "description": describe(),
        "content_key": new_content_key(),
        "signing_key": CUSTODIAN,
        "created": CREATED,
    }
    return seal(sources, out, **fields | changes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_body_lies_alone_and_private_under_its_name(tmp_path: Path) -> None:
    sealed = make_sealed(tmp_path, CONTENT)
    assert names(tmp_path) == ["model.sealed", "sources"]
    assert stat.S_IMODE(sealed.body_path.stat().st_mode) == 0o600
    for content in CONTENT.values():
        assert content[:64] not in sealed.body


def test_sealing_again_replaces_the_body_and_shares_nothing_with_it(tmp_path: Path) -> None:
    first = make_sealed(tmp_path, CONTENT)
    first_body = first.body
    second = make_sealed(tmp_path, CONTENT, content_key=first.content_key)
    assert second.body != first_body
    assert second.body[:24] != first_body[:24], "the salt was used twice"
    model = unseal_into([second.body], second.verified, second.content_key)
    assert model.confirm() == second.verified.digest


def test_progress_ends_at_the_size_of_all_files(tmp_path: Path) -> None:
    told: list[int] = []
    sources = write_files(tmp_path / "in", CONTENT)
    seal_to(tmp_path / "out", sources, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == sum(map(len, CONTENT.values()))


@pytest.mark.parametrize("room", [0, 1, 55, 56, 57, 20_000, 50_000])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_body_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, code: int
) -> None:
    class TinyDisk(io.FileIO):
        """Takes *room* bytes, the last ones only in part, as a real disk does."""

        left = room

        def write(self, data: Any) -> int:
            if self.left == 0:
                raise OSError(code, os.strerror(code))
            written = super().write(memoryview(data)[: self.left])
            self.left -= written
            return written

    out = tmp_path / "out" / "model.sealed"
    out.parent.mkdir()
    out.write_bytes(b"the body of yesterday")
    sources = write_files(tmp_path / "in", CONTENT)
    monkeypatch.setattr(seal_module, "FileIO", TinyDisk)
    with pytest.raises(UnavailableError) as caught:
        seal_to(out, sources)
    assert str(out) in str(caught.value)
    assert caught.value.reasons[0].code == "sealing.disk_full"
    assert names(out.parent) == ["model.sealed"]
    assert out.read_bytes() == b"the body of yesterday"


@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_a_failed_fsync_or_rename_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    sources = write_files(tmp_path / "in", CONTENT)
    out = tmp_path / "out" / "model.sealed"
    out.parent.mkdir()
    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "rename")), fail)
    with pytest.raises(ConfigurationError, match="cannot write the sealed model"):
        seal_to(out, sources)
    assert names(out.parent) == []


def test_a_file_size_limit_of_the_kernel_is_met_the_same_way(tmp_path: Path) -> None:
    """A real write that the kernel refuses, in a process of its own."""
    write_files(tmp_path / "sources", CONTENT)
    (tmp_path / "out").mkdir()
    program = f"""
import resource
from pathlib import Path
from aigovtool.errors import UnavailableError
from aigovtool.sealing.seal import SourceFile
from tests.sealing.test_seal import seal_to
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
folder = Path({str(tmp_path)!r})
sources = [
    SourceFile(name=name, path=folder / "sources" / f"source-{{number}}")
    for number, name in enumerate({list(CONTENT)!r})
]
try:
    seal_to(folder / "out" / "model.sealed", sources)
except UnavailableError as error:
    print(error.reasons[0].code)
"""
    done = _run(program)
    assert done.stdout.strip() == "sealing.disk_full", done.stderr
    assert names(tmp_path / "out") == []


def test_an_interrupted_seal_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    sources = write_files(tmp_path / "in", CONTENT)
    out = tmp_path / "out" / "model.sealed"
    out.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        seal_to(out, sources, progress=interrupt)
    assert names(out.parent) == []


def test_a_folder_that_is_not_there_or_in_the_way_is_the_operators_to_mend(
    tmp_path: Path,
) -> None:
    sources = write_files(tmp_path / "in", CONTENT)
    with pytest.raises(ConfigurationError, match=r"no/model\.sealed"):
        seal_to(tmp_path / "no" / "model.sealed", sources)
    in_the_way = tmp_path / "out" / "model.sealed"
    in_the_way.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="cannot write"):
        seal_to(in_the_way, sources)
    assert names(tmp_path / "out") == ["model.sealed"]


def test_a_model_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    sources = write_files(tmp_path / "in", CONTENT)
    out = tmp_path / "out" / "model.sealed"
    out.parent.mkdir()
    for path in (tmp_path / "in" / "missing", tmp_path / "in"):
        bad = [*sources, SourceFile(name="third", path=path)]
        with pytest.raises(ConfigurationError) as caught:
            seal_to(out, bad)
        assert str(path) in str(caught.value)
    assert names(out.parent) == []


@pytest.mark.parametrize("change", [b"longer" * 10_000, b""])
def test_a_model_file_that_changes_while_it_is_sealed_is_refused(
    tmp_path: Path, change: bytes
) -> None:
    sources = write_files(tmp_path / "in", CONTENT)
    out = tmp_path / "out" / "model.sealed"
    out.parent.mkdir()

    def meddle(_: int) -> None:
        sources[1].path.write_bytes(change)

    with pytest.raises(ConfigurationError, match="changed while it was being sealed"):
        seal_to(out, sources, progress=meddle)
    assert names(out.parent) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"description": describe(name="../name")},
        {"description": describe(name="\ud800")},
        {"description": describe(version="")},
        {"description": describe(entry="not-there")},
        {"description": describe(licence="\ud800")},
        {"created": datetime(2025, 1, 1)},  # noqa: DTZ001  the naive time is what is tested
        {"content_key": b"short"},
    ],
)
def test_what_is_wrong_is_said_before_a_byte_is_sealed(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    sources = write_files(tmp_path / "in", CONTENT)
    told: list[int] = []
    with pytest.raises(MalformedError):
        seal_to(tmp_path / "model.sealed", sources, progress=told.append, **changes)
    assert not told
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize(
    "files", [{}, {"model.onnx": b""}, {"../model.onnx": b"x"}, {"model.onnx": b"x", "e": b""}]
)
def test_no_file_an_empty_file_or_an_unsafe_name_is_refused(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    with pytest.raises(MalformedError):
        make_sealed(tmp_path, files)
    assert names(tmp_path) == ["sources"]


def test_more_files_than_a_process_may_open_are_sealed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 20
    files = {f"tensor-{number}": bytes([number]) for number in range(64)}
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        sealed = make_sealed(tmp_path, files, entry="tensor-0")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    model = unseal_into([sealed.body], sealed.verified, sealed.content_key)
    assert {name: bytes(view) for name, view in model.files.items()} == files


MEMORY_PROGRAM = """
import resource, sys
from pathlib import Path
from aigovtool.sealing.seal import SourceFile, new_content_key
from aigovtool.sealing.unseal import unseal_into
from tests.sealing.test_seal import seal_to
folder, size = Path(sys.argv[1]), int(sys.argv[2])
source, out, key = folder / "model.onnx", folder / "model.sealed", new_content_key()
with source.open("wb") as file:
    file.truncate(size)
peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before = peak()
verified = seal_to(out, [SourceFile(name="model.onnx", path=source)], content_key=key)
sealed = peak()
with out.open("rb", buffering=0) as body:
    model = unseal_into(body, verified, key)
unsealed = peak()
print(sealed - before, unsealed - sealed)
"""


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Measured from outside: the kernel's high-water mark of a process that seals and unseals."""
    peaks = {}
    for mib in (32, 256):
        done = _run(MEMORY_PROGRAM, str(tmp_path), str(mib << 20))
        assert done.returncode == 0, done.stderr
        sealing_kib, unsealing_kib = map(int, done.stdout.split())
        peaks[mib] = (sealing_kib, unsealing_kib - (mib << 10))
    limit_kib = 24 << 10
    for sealing_kib, beyond_model_kib in peaks.values():
        assert sealing_kib < limit_kib
        assert beyond_model_kib < limit_kib
