"""Models get into memory whole and genuine, by any way, and never onto a disk."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave import loader as loader_module
from aigovtool.enclave.cache import BodyCache
from aigovtool.enclave.loader import Loader
from aigovtool.enclave.progress import LoggedProgress
from aigovtool.enclave.runtime.base import RuntimeOptions
from aigovtool.enclave.runtime.onnx import OnnxModel
from aigovtool.enclave.secret_bytes import overwrite
from aigovtool.errors import UnavailableError, VerificationError

from . import models
from .conftest import query, running_enclave
from .custodian import FakeCustodian

PIECE = 4096


class Source:
    """Gives a body in pieces; can cut, corrupt and stall."""

    def __init__(self, model: models.Sealed) -> None:
        self.body_bytes = model.body.read_bytes()
        self.offsets: list[int] = []
        self.cut_after: list[int] = []  # one for each download
        self.stall = False
        self.asked = asyncio.Event()

    async def body(self, digest: bytes, *, offset: int, size: int):
        self.offsets.append(offset)
        self.asked.set()
        end = offset + self.cut_after.pop(0) if self.cut_after else len(self.body_bytes)
        for start in range(offset, min(end, len(self.body_bytes)), PIECE):
            if self.stall:
                await asyncio.sleep(3600)
            yield self.body_bytes[start : min(start + PIECE, end)]
            await asyncio.sleep(0)
        if end < len(self.body_bytes):
            raise UnavailableError("cut")


@pytest.fixture
def model(tmp_path: Path, key: SigningKey) -> models.Sealed:
    """A model of 64 kB with external data."""
    folder = tmp_path / "sealed"
    folder.mkdir()
    return models.sealed(folder, key, models.external(folder, rows=8192))


def loader(source: Source, cache: Path | None = None) -> Loader:
    return Loader(
        source=source,
        cache=BodyCache(cache),
        options=RuntimeOptions(intra_op_threads=1),
        progress=LoggedProgress(),
    )


def works(model: OnnxModel) -> bool:
    answer = model.new_run().execute({"x": np.array([[1, 2]], np.float32)}, ["y"])["y"]
    return answer.shape == (1, 8192) and bool((answer == 3).all())


async def test_a_model_with_external_data_is_loaded_from_memory(model: models.Sealed) -> None:
    source = Source(model)
    assert works(await loader(source).load(model.verified, model.content_key))
    assert source.offsets == [0]


async def test_a_cut_download_goes_on_where_it_was_cut(model: models.Sealed) -> None:
    source = Source(model)
    source.cut_after = [10_000, 20_000, 0]
    assert works(await loader(source).load(model.verified, model.content_key))
    assert source.offsets == [0, 10_000, 30_000, 30_000]


async def test_a_source_that_never_gives_anything_is_given_up(
    model: models.Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigovtool.enclave.loader.MAX_CUTS", 2)
    source = Source(model)
    source.cut_after = [0] * 3
    with pytest.raises(UnavailableError):
        await loader(source).load(model.verified, model.content_key)
    assert source.offsets == [0, 0, 0]


async def test_the_cache_holds_ciphertext_and_saves_the_second_download(
    model: models.Sealed, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first, second = Source(model), Source(model)
    assert works(await loader(first, cache).load(model.verified, model.content_key))
    (kept,) = cache.iterdir()
    assert kept.read_bytes() == model.body.read_bytes()
    assert kept.stat().st_mode & 0o077 == 0
    assert works(await loader(second, cache).load(model.verified, model.content_key))
    assert (first.offsets, second.offsets) == ([0], [])


async def test_a_partial_download_is_continued_by_the_next_process(
    model: models.Sealed, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    part = cache / f"{model.verified.manifest.body.sha256}.part"
    part.write_bytes(model.body.read_bytes()[:12_345])
    source = Source(model)
    assert works(await loader(source, cache).load(model.verified, model.content_key))
    assert source.offsets == [12_345]
    assert not part.exists()


@pytest.mark.parametrize("ending", ["sealed", "part"])
async def test_a_corrupted_cache_is_fetched_again(
    model: models.Sealed, tmp_path: Path, ending: str
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    damaged = bytearray(model.body.read_bytes())
    damaged[5000] ^= 1
    (cache / f"{model.verified.manifest.body.sha256}.{ending}").write_bytes(damaged)
    source = Source(model)
    assert works(await loader(source, cache).load(model.verified, model.content_key))
    assert source.offsets == [0]


async def test_a_body_that_is_not_the_manifests_is_refused_and_nothing_is_kept(
    model: models.Sealed, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    source = Source(model)
    damaged = bytearray(source.body_bytes)
    damaged[5000] ^= 1
    source.body_bytes = bytes(damaged)
    with pytest.raises(VerificationError):
        await loader(source, cache).load(model.verified, model.content_key)
    assert list(cache.iterdir()) == []


async def test_a_wrong_key_opens_nothing(model: models.Sealed) -> None:
    with pytest.raises(VerificationError):
        await loader(Source(model)).load(model.verified, bytes(32))


async def test_a_cache_that_cannot_be_used_is_a_warning(
    model: models.Sealed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    source = Source(model)
    assert works(
        await loader(source, tmp_path / "file" / "cache").load(model.verified, model.content_key)
    )
    assert "cannot use the cache" in caplog.text


async def test_a_disk_that_fills_up_is_a_warning(
    model: models.Sealed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("aigovtool.enclave.loader._write_all", full)
    source = Source(model)
    assert works(await loader(source, tmp_path / "cache").load(model.verified, model.content_key))
    assert "No space left" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []
    assert source.offsets == [0]  # what the disk did not take was decrypted all the same


async def test_what_came_before_a_download_failed_is_kept_for_the_next(
    model: models.Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigovtool.enclave.loader.MAX_CUTS", 0)
    cache = tmp_path / "cache"
    first, second = Source(model), Source(model)
    first.cut_after = [2 * PIECE]
    with pytest.raises(UnavailableError):
        await loader(first, cache).load(model.verified, model.content_key)
    (part,) = cache.iterdir()
    assert part.read_bytes() == model.body.read_bytes()[: 2 * PIECE]
    assert works(await loader(second, cache).load(model.verified, model.content_key))
    assert second.offsets == [2 * PIECE]
    (kept,) = cache.iterdir()
    assert kept.read_bytes() == model.body.read_bytes()


async def test_a_disk_that_fills_up_in_the_middle_keeps_nothing(
    model: models.Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all, calls = loader_module._write_all, itertools.count()

    def full_later(*given: object) -> None:
        if next(calls) == 2:
            raise OSError(28, os.strerror(28))
        write_all(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(loader_module, "_write_all", full_later)
    source = Source(model)
    assert works(await loader(source, tmp_path / "cache").load(model.verified, model.content_key))
    assert list((tmp_path / "cache").iterdir()) == []
    assert next(calls) == 3  # later pieces would leave a gap


async def test_two_processes_do_not_write_one_body(model: models.Sealed, tmp_path: Path) -> None:
    cache = BodyCache(tmp_path / "cache")
    with cache.writing(model.verified.manifest.body) as mine:
        assert mine is not None
        with cache.writing(model.verified.manifest.body) as theirs:
            assert theirs is None


@pytest.mark.parametrize("cached", [True, False])
async def test_loading_can_be_cancelled(model: models.Sealed, tmp_path: Path, cached: bool) -> None:
    source = Source(model)
    source.stall = True
    cache = tmp_path / "cache" if cached else None
    loading = asyncio.create_task(loader(source, cache).load(model.verified, model.content_key))
    await source.asked.wait()
    loading.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await loading


async def test_plaintext_is_never_on_disk(
    model: models.Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    loaded = await loader(Source(model), tmp_path / "cache").load(model.verified, model.content_key)
    assert works(loaded)
    canary = np.ones(64, np.float32).tobytes()  # a piece of the weights
    assert [path.name for path in files_with(b"", tmp_path)]
    assert files_with(canary, tmp_path) == []


def files_with(piece: bytes, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and piece in path.read_bytes()]


async def test_an_enclave_serves_a_model_with_external_data_over_a_cut_connection(
    key: SigningKey, tmp_path: Path, model: models.Sealed
) -> None:
    async with FakeCustodian(key, model, budget=1) as custodian:
        custodian.body_limit = 20_000
        async with running_enclave(custodian, cache=tmp_path / "cache") as enclave:
            status, answer, _ = await enclave.infer(body=query([[1.0, 2.0]]))
        assert status == 200
        assert set(answer["outputs"][0]["data"]) == {3.0}
        assert custodian.body_offsets[0] == 0
        assert len(custodian.body_offsets) == 2
        assert custodian.body_offsets[1] > 0


def test_secret_bytes_can_be_overwritten() -> None:
    data = os.urandom(1000)
    overwrite(data)
    assert data == bytes(1000)
