"""Models of one enclave server take no more memory together than they may."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave import supervisor
from aigovtool.enclave.config import default_model_bytes
from aigovtool.enclave.model_room import ModelRoom, NoRoomError
from aigovtool.ids import LoanId

from . import models
from .conftest import running_enclave
from .custodian import FakeCustodian
from .models import Sealed


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "REFUSED_FIRST_S", 0.05)
    monkeypatch.setattr(supervisor, "REFUSED_LONGEST_S", 0.2)


@pytest.fixture
def second(key: SigningKey, tmp_path: Path) -> Sealed:
    folder = tmp_path / "second"
    folder.mkdir()
    return models.sealed(folder, key, models.tripling(), version="2")


def bytes_of(*sealed: Sealed) -> int:
    """Small models are kept twice."""
    return sum(2 * one.verified.manifest.plaintext_size for one in sealed)


def test_what_does_not_fit_is_refused_and_counts_for_nothing(
    key: SigningKey, tmp_path: Path, second: Sealed
) -> None:
    first = models.sealed(tmp_path, key, models.doubling())
    old, new = first.verified.manifest, second.verified.manifest
    room = ModelRoom(bytes_of(first, second) - 1, packed_bytes=1 << 20)
    room.take(old)
    with pytest.raises(NoRoomError, match="no memory"):
        room.take(new)
    assert room.taken_bytes == bytes_of(first)
    assert room.fits_instead(new, old)
    room.give_back(old)
    room.take(new)
    assert room.taken_bytes == bytes_of(second)
    large = ModelRoom(old.plaintext_size, packed_bytes=old.plaintext_size - 1)
    large.take(old)  # which is kept once
    assert not ModelRoom(1, packed_bytes=0).fits_instead(new, old)


def test_the_default_is_less_than_the_machine_has() -> None:
    assert 0 < default_model_bytes() < 1 << 50


async def test_where_there_is_no_memory_for_both_versions_the_old_one_ends_first(
    custodian: FakeCustodian, second: Sealed
) -> None:
    room = max(bytes_of(custodian.model), bytes_of(second))
    async with running_enclave(custodian, max_model_bytes=room) as enclave:
        assert (await enclave.infer())[1]["model_version"] == "1"
        enclave.ready.clear()
        await custodian.push_replaced(second)
        async with asyncio.timeout(30):
            await enclave.ready.wait()
        assert (await enclave.infer())[1]["model_version"] == "2"
        assert (await enclave.infer())[0] == 200
    assert custodian.spent == 3
    custodian.check()


async def test_a_new_version_that_can_never_fit_leaves_the_old_one_served(
    key: SigningKey, tmp_path: Path, second: Sealed
) -> None:
    first = models.sealed(tmp_path, key, models.doubling())
    folder = tmp_path / "large"
    folder.mkdir()
    large = models.sealed(folder, key, models.external(folder), version="3")
    async with (
        FakeCustodian(key, first, budget=100_000) as custodian,
        running_enclave(custodian, max_model_bytes=bytes_of(first, second)) as enclave,
    ):
        await custodian.push_replaced(large)
        await custodian.until(lambda: len(custodian.proofs) == 2)  # two tries
        assert (await enclave.infer())[1]["model_version"] == "1"
        await custodian.push_replaced(second)
        async with asyncio.timeout(30):
            while (await enclave.infer())[1]["model_version"] != "2":
                pass


async def test_a_loan_without_memory_says_so_and_is_served_when_another_has_ended(
    custodian: FakeCustodian, tmp_path: Path
) -> None:
    folder, key = tmp_path / "other", SigningKey.generate()
    folder.mkdir()
    model = models.sealed(folder, key, models.doubling())
    async with FakeCustodian(key, model, budget=3, loan=LoanId("loan_other")) as other:
        room = bytes_of(model)
        async with running_enclave(custodian, beside=[other], max_model_bytes=room) as enclave:
            both = (custodian, other)
            async with asyncio.timeout(30):
                while not (refused := [one for one in both if one.proofs]):
                    await enclave.get("/v2/health/live")
            (without,) = refused
            (served,) = set(both) - set(refused)
            assert (await enclave.infer(consumer=served.alice))[0] == 200
            status, problem, _ = await enclave.infer(consumer=without.alice)
            assert status == 503
            assert "memory" in str(problem)
            await served.set_state("stopped")
            async with asyncio.timeout(30):
                while (await enclave.infer(consumer=without.alice))[0] != 200:
                    pass
