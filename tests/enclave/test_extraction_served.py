"""Limits on extraction as a consumer meets them, and what the custodian hears of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.config import Limits
from aigovtool.wire.control import OutputSeen, Report, TermsChanged
from aigovtool.wire.extraction import ExtractionLimits

from . import models
from .conftest import query, running_enclave
from .custodian import FakeCustodian


async def limited(key: SigningKey, folder: Path, **limits: int) -> FakeCustodian:
    model = models.sealed(folder, key, models.doubling())
    custodian = FakeCustodian(key, model, budget=100)
    custodian.extraction = ExtractionLimits(**limits)
    return custodian


def ways(number: int) -> dict[str, str]:
    """A query that takes the quick way, and one that takes the long one."""
    return {} if number == 0 else {"Idempotency-Key": f"k{number}"}


@pytest.mark.parametrize("way", [0, 1])
async def test_numbers_have_no_more_digits_than_the_loan_gives(
    key: SigningKey, tmp_path: Path, way: int
) -> None:
    async with (
        await limited(key, tmp_path, output_digits=2) as custodian,
        running_enclave(custodian) as enclave,
    ):
        body = query([[1.2345, 617.28]])
        status, answer, _ = await enclave.infer(body=body, **ways(way))
        assert (status, answer["outputs"][0]["data"]) == (200, [2.5, 1200.0])
        await custodian.push(TermsChanged(terms=_without(custodian)))
        async with asyncio.timeout(30):
            while (await enclave.infer(body=body))[1]["outputs"][0]["data"] == [2.5, 1200.0]:
                pass


def _without(custodian: FakeCustodian):
    custodian.extraction = ExtractionLimits()
    return custodian._terms()


@pytest.mark.parametrize("way", [0, 1])
async def test_only_the_best_classes_are_given_whatever_is_asked_for(
    key: SigningKey, tmp_path: Path, way: int
) -> None:
    async with (
        await limited(key, tmp_path, top_labels=1, output_digits=2) as custodian,
        running_enclave(custodian) as enclave,
    ):
        body = query([[1.2345, 0.5], [0.1, 3.14159]])
        for outputs in (
            [],
            [{"name": "y"}],
            [{"name": "y", "parameters": {"classification": 2}}],
        ):
            status, answer, headers = await enclave.infer(
                body=body | ({"outputs": outputs} if outputs else {}),
                **{name: f"{text}{len(str(outputs))}" for name, text in ways(way).items()},
            )
            (output,) = answer["outputs"]
            assert status == 200
            assert (output["datatype"], output["shape"]) == ("BYTES", [2, 1])
            assert output["data"] == ["2.500000:0", "6.300000:1"]
            assert headers["Aigovtool-Receipt"]
        assert "1.2345" not in json.dumps(answer)


async def test_a_model_without_scores_is_refused_before_it_is_charged(
    key: SigningKey, tmp_path: Path
) -> None:
    model = models.sealed(tmp_path, key, models.every_type())
    custodian = FakeCustodian(key, model, budget=10)
    custodian.extraction = ExtractionLimits(top_labels=1)
    async with custodian, running_enclave(custodian, limits=Limits()) as enclave:
        inputs = [
            {
                "name": one.name,
                "datatype": one.datatype,
                "shape": [1],
                "data": [_some(one.datatype)],
            }
            for one in model.verified.manifest.signature.inputs
        ]
        status, answer, headers = await enclave.infer(body={"inputs": inputs})
        assert (status, answer["reasons"][0]["code"]) == (422, "extraction.labels")
        assert "Aigovtool-Receipt" not in headers
        assert int(headers["Aigovtool-Remaining"]) == 10


def _some(datatype: str) -> object:
    return {"BOOL": True, "BYTES": "a"}.get(datatype, 1)


async def test_a_cap_is_asked_about_before_any_lease_and_only_then(
    key: SigningKey, tmp_path: Path
) -> None:
    async with (
        await limited(key, tmp_path, output_tokens_per_day=50) as custodian,
        running_enclave(custodian) as enclave,
    ):
        assert (await enclave.infer())[0] == 200
        kinds = [type(message) for message in custodian.requests]
        assert kinds.index(OutputSeen) < kinds.index(Report)
        first = custodian.requests[kinds.index(OutputSeen)]
        assert isinstance(first, OutputSeen)
        assert (first.all, first.tokens) == (True, {})


async def test_without_a_cap_nothing_is_said_of_it(key: SigningKey, tmp_path: Path) -> None:
    async with await limited(key, tmp_path) as custodian, running_enclave(custodian) as enclave:
        assert (await enclave.infer())[0] == 200
        assert not [one for one in custodian.requests if isinstance(one, OutputSeen)]
