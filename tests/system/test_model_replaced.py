"""Real processes: a loan's model is replaced by another version while clients query it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

import aigovtool
from aigovtool.demo.stage import Stage
from aigovtool.demo.story import ASSETS

IMAGE = {"image": np.zeros((1, 8, 8), np.float32)}


def done(stage: Stage, *arguments: str) -> Any:
    outcome = stage.custodian(*arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome.json()


async def test_a_version_is_sealed_lent_and_served_without_a_failed_query(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        assert stage.init().code == 0
        stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"), "--num-requests", "100000",
        )  # fmt: skip
        enclave, port = stage.serve_enclave("enclave")
        stage.wait_until_serving(enclave, port)
        models: list[str] = []
        over = asyncio.Event()

        async def ask(client: aigovtool.AsyncClient) -> None:
            while not over.is_set():
                answer = await client.infer(IMAGE)
                models.append(answer.receipt.receipt.model_digest.hex())

        async with await aigovtool.connect_async(
            f"127.0.0.1:{port}",
            manifest=stage.data / "manifest.toml",
            api_key=(stage.data / "consumer.key").read_text().strip(),
            receipts=tmp_path / "receipts",
        ) as client:
            asking = [asyncio.create_task(ask(client)) for _ in range(4)]

            async def until(so: object) -> None:
                async with asyncio.timeout(60):
                    while not so():  # type: ignore[operator]
                        await asyncio.wait(
                            asking, timeout=0.05, return_when=asyncio.FIRST_EXCEPTION
                        )
                        for task in asking:
                            if task.done():
                                task.result()

            await until(lambda: len(models) > 20)
            (first,) = set(models)
            second = (
                await asyncio.to_thread(
                    done, stage, "model", "seal", str(ASSETS / "digits.onnx"),
                    "--interface", str(ASSETS / "interface.json"), "--model-version", "2",
                )
            )["model"]  # fmt: skip
            told = await asyncio.to_thread(
                done, stage, "loan", "replace-model", "--model", "digits:2", "--reason", "better"
            )
            assert (told["model"], told["model_version"]) == (second, "2")
            await until(lambda: models[-20:] == [second] * 20)
            over.set()
            await asyncio.gather(*asking)
        assert set(models) == {first, second}
        switched = models.index(second)
        assert first not in models[switched + 8 :]  # but for what was under way
        assert enclave.terminate() == 0
        (loan,) = done(stage, "loan", "list")
        assert (loan["account"]["spent"], loan["account"]["leased"]) == (len(models), 0)
        sessions = done(stage, "session", "list")
        assert [one["state"] for one in sessions] == ["ended", "ended"]
        events = [one["kind"] for one in done(stage, "events")]
        assert events.count("loan.model_replaced") == 1
        assert events.count("session.stop_proof") == 2
