"""Real processes: two loans share memory for one model, and neither loses or gains a credit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

import aigovtool
from aigovtool.client.session import AsyncClient, Result
from aigovtool.demo.stage import Stage
from aigovtool.demo.story import ASSETS
from aigovtool.errors import UnavailableError

IMAGE = {"image": np.zeros((1, 8, 8), np.float32)}
MODEL = ASSETS / "digits.onnx"


def done(stage: Stage, *arguments: str) -> Any:
    outcome = stage.custodian(*arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome.json()


async def answered(client: AsyncClient) -> tuple[Result, set[str]]:
    """Ask until there is an answer; return it, and what was said before."""
    said = set()
    async with asyncio.timeout(90):
        while True:
            try:
                return await client.infer(IMAGE), said
            except UnavailableError as error:
                said.add(error.reasons[0].code)
                await asyncio.sleep(0.2)


async def test_two_loans_take_turns_in_memory_for_one_model(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        assert stage.init().code == 0
        stage.serve_custodian(
            "--upload", str(MODEL),
            "--interface", str(ASSETS / "interface.json"), "--num-requests", "10",
        )  # fmt: skip
        (first_loan,) = (one["loan"] for one in done(stage, "loan", "list"))
        assert done(stage, "loan", "set", first_loan, "--evictable")["terms"]["evictable"]
        ticket, manifest, key = (tmp_path / name for name in ("second.toml", "m.toml", "key"))
        second_loan = done(
            stage, "loan", "create", "--name", "second", "--model", "digits", "--credits", "10",
            "--policy", str(stage.data / "manifest.toml"), "--evictable",
            "--ticket", str(ticket), "--manifest", str(manifest),
        )["loan"]["loan"]  # fmt: skip
        done(stage, "consumer", "create", "--name", "x", "--loan", second_loan, "--out", str(key))
        room = str(3 * MODEL.stat().st_size)  # each is kept twice
        enclave, port = stage.serve_enclave(
            "enclave", "--ticket", str(ticket), "--max-model-bytes", room
        )

        async def connect(manifest: Path, key: str) -> AsyncClient:
            async with asyncio.timeout(90):
                while True:
                    try:
                        return await aigovtool.connect_async(
                            f"127.0.0.1:{port}",
                            manifest=manifest,
                            api_key=key,
                            receipts=tmp_path / "receipts",
                        )
                    except UnavailableError:  # that loan's model is not in memory
                        await asyncio.sleep(0.2)

        first = await connect(
            stage.data / "manifest.toml", (stage.data / "consumer.key").read_text().strip()
        )
        async with first:
            sessions = [(await answered(first))[0].receipt.receipt.session]
            second = await connect(manifest, key.read_text().strip())  # which evicts the first
            async with second:
                await answered(second)
                result, said = await answered(first)
                sessions.append(result.receipt.receipt.session)
                assert said == {"enclave.evicted"}
                assert result.remaining == 8
        assert len(set(sessions)) == 2
        assert enclave.alive()
        assert enclave.terminate() == 0
        for one, spent in ((first_loan, 2), (second_loan, 1)):
            (account,) = (
                row["account"] for row in done(stage, "loan", "list") if row["loan"] == one
            )
            assert (account["spent"], account["leased"], account["forfeited"]) == (spent, 0, 0)
        reasons = [
            event for event in done(stage, "events") if event["kind"] == "session.stop_proof"
        ]
        assert len(reasons) >= 3
