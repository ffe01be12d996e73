"""Real processes: two loans in one enclave, with real evidence, clients and receipts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

import aigovtool
from aigovtool.client.session import AsyncClient
from aigovtool.demo.stage import Stage
from aigovtool.demo.story import ASSETS
from aigovtool.errors import AIGovToolError, LoanNotActiveError, UnavailableError

IMAGE = {"image": np.zeros((1, 8, 8), np.float32)}


def done(stage: Stage, *arguments: str) -> Any:
    outcome = stage.custodian(*arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome.json()


async def refusal(client: AsyncClient) -> AIGovToolError | None:
    try:
        await client.infer(IMAGE)
    except AIGovToolError as error:
        return error
    return None


async def test_two_loans_in_one_enclave_are_verified_charged_and_stopped_by_themselves(
    tmp_path: Path,
) -> None:
    with Stage(tmp_path) as stage:
        assert stage.init().code == 0
        stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"), "--num-requests", "5",
        )  # fmt: skip
        ticket, manifest, key = (tmp_path / name for name in ("second.toml", "m.toml", "key"))
        lent = done(
            stage, "loan", "create", "--name", "second", "--model", "digits", "--credits", "2",
            "--policy", str(stage.data / "manifest.toml"),
            "--ticket", str(ticket), "--manifest", str(manifest),
        )["loan"]["loan"]  # fmt: skip
        done(stage, "consumer", "create", "--name", "x", "--loan", lent, "--out", str(key))
        _, port = stage.serve_enclave("enclave", "--ticket", str(ticket))

        async def connect(manifest: Path, key: str) -> AsyncClient:
            async with asyncio.timeout(60):
                while True:
                    try:
                        return await aigovtool.connect_async(
                            f"127.0.0.1:{port}",
                            manifest=manifest,
                            api_key=key,
                            receipts=tmp_path / "receipts",
                        )
                    except UnavailableError:  # that loan is still enrolling
                        await asyncio.sleep(0.1)

        first = await connect(
            stage.data / "manifest.toml", (stage.data / "consumer.key").read_text().strip()
        )
        second = await connect(manifest, key.read_text().strip())
        async with first, second:
            assert [one.attestation.loan != lent for one in (first, second)] == [True, False]
            assert (await first.infer(IMAGE)).remaining == 4
            assert [(await second.infer(IMAGE)).remaining for _ in range(2)] == [1, 0]
            done(stage, "stop", lent, "--reason", "over")
            async with asyncio.timeout(30):
                while not isinstance(await refusal(second), LoanNotActiveError):
                    pass
            assert (await first.infer(IMAGE)).remaining == 3
        (account,) = [one["account"] for one in done(stage, "loan", "list") if one["loan"] == lent]
        assert account["spent"] == 2
