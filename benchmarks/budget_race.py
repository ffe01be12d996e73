"""
200 requests at once against a budget for 20: LiteLLM's proxy and ours, in the same run.

    python -m benchmarks.budget_race --venv DIR [--requests 200] [--fits 20] [--json]

LiteLLM is installed into a virtual environment of its own in DIR (``litellm[proxy]`` of
the package index), unless it is there. Its budgets of keys and users need a PostgreSQL database
and the Prisma engines, which are downloaded from elsewhere: they are not compared. What is compared
is its budget without a database, for a provider, in memory (``provider_budget_config``), set in USD
so that `--fits` requests are as much as it holds. Behind it is a server of ours on loopback that
answers like a model after `--seconds`, and counts what reaches it.

Ours is a custodian and an enclave with that many credits, and the demo's model.

Each is asked twice: one request after the other, which shows that its budget works, then, with a
fresh budget, all at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

import aigovtool
from aigovtool.custodian.records import LoanTerms
from aigovtool.demo.stage import answers, free_port
from aigovtool.drill.consumers import IMAGE
from aigovtool.drill.scene import open_scene
from aigovtool.errors import AIGovToolError

START_LIMIT_S = 120.0
COST_USD = 0.01  # of one request: 10 prompt tokens at 0.001
PROMPT_TOKENS, TOKEN_USD = 10, 0.001


class Upstream:
    """Answers like a chat model, after a while, and counts."""

    def __init__(self, seconds: float) -> None:
        self.count = 0
        self._seconds = seconds
        self.port = free_port()

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        return runner

    async def _answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.count += 1
        await asyncio.sleep(self._seconds)
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 1, "total_tokens": 11}
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}}
        return web.json_response(
            {
                "id": "x", "object": "chat.completion", "created": 1, "model": "fake",
                "choices": [{**choice, "finish_reason": "stop"}], "usage": usage,
            }
        )  # fmt: skip


def install(venv: Path) -> str:
    """Install LiteLLM if it is not there, and return its version."""
    python = venv / "bin/python"
    if not (venv / "bin/litellm").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "litellm[proxy]"], check=True, stdout=2
        )
    code = "import importlib.metadata as m; print(m.version('litellm'))"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


async def litellm(
    venv: Path, folder: Path, upstream: Upstream, *, requests: int, fits: int, at_once: bool
) -> dict[str, int]:
    """Start LiteLLM with a fresh budget, ask it, and count what came back and what went through."""
    port, key = free_port(), "sk-" + secrets.token_hex(8)
    config = {
        "model_list": [
            {
                "model_name": "fake",
                "litellm_params": {
                    "model": "openai/fake", "api_key": "none",
                    "api_base": f"http://127.0.0.1:{upstream.port}/v1",
                    "input_cost_per_token": TOKEN_USD, "output_cost_per_token": 0.0,
                },
            }
        ],
        "router_settings": {
            "num_retries": 0,
            "provider_budget_config": {
                "openai": {"budget_limit": fits * COST_USD, "time_period": "1d"}
            },
        },
        "general_settings": {"master_key": key},
    }  # fmt: skip
    path = folder / "litellm.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    with (folder / "litellm.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - once, before anything is measured
            [str(venv / "bin/litellm"), "--config", str(path), "--port", str(port),
             "--host", "127.0.0.1", "--telemetry", "False"],
            stdout=log, stderr=log,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""},
        )  # fmt: skip
    try:
        end_s = time.monotonic() + START_LIMIT_S
        while not answers(port):
            assert process.poll() is None, (folder / "litellm.log").read_text()[-2000:]
            assert time.monotonic() < end_s, "LiteLLM did not start"
            await asyncio.sleep(0.2)
        upstream.count = 0
        body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"},
            connector=aiohttp.TCPConnector(limit=requests),
        ) as http:

            async def ask() -> bool:
                async with http.post(url, json=body) as answer:
                    await answer.read()
                    return answer.status == 200

            outcomes = await in_turn_or_at_once(ask, requests, at_once=at_once)
    finally:
        process.terminate()
        process.wait(20)
    return {"served": sum(outcomes), "reached_the_model": upstream.count}


async def ours(folder: Path, *, requests: int, fits: int, at_once: bool) -> dict[str, int]:
    """Ask an enclave with a fresh budget of *fits* credits."""
    with open_scene(folder) as scene:
        scene.lend(fits, LoanTerms())
        port = scene.add_enclave().port
        async with await aigovtool.connect_async(
            f"127.0.0.1:{port}",
            manifest=scene.folder.manifest,
            api_key=scene.folder.consumer_key.read_text().strip(),
        ) as client:

            async def ask() -> bool:
                try:
                    await client.infer({"image": IMAGE})
                except AIGovToolError:
                    return False
                return True

            outcomes = await in_turn_or_at_once(ask, requests, at_once=at_once)
        scene.settle(limit_s=30.0)
        return {"served": sum(outcomes), "reached_the_model": scene.account().spent}


async def in_turn_or_at_once(ask: Any, requests: int, *, at_once: bool) -> list[bool]:
    if at_once:
        return list(await asyncio.gather(*(ask() for _ in range(requests))))
    return [await ask() for _ in range(requests)]


async def race(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    version = install(options.venv)
    upstream = Upstream(options.seconds)
    runner = await upstream.start()
    rows = []
    try:
        for at_once in (False, True):
            how: dict[str, Any] = {"requests": options.requests, "fits": options.fits}
            if not at_once:
                how["requests"] = 2 * options.fits  # enough to be refused
            counts = await litellm(options.venv, folder, upstream, at_once=at_once, **how)
            rows.append({"proxy": f"LiteLLM {version}", "at_once": at_once, **how, **counts})
            name = "at-once" if at_once else "in-turn"
            counts = await ours(folder / name, at_once=at_once, **how)
            rows.append({"proxy": "aigovtool", "at_once": at_once, **how, **counts})
    finally:
        await runner.cleanup()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--fits", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.05, help="the model computes so long")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aigovtool-race-") as folder:
        rows = asyncio.run(race(options, Path(folder)))
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        how = "at once" if row["at_once"] else "in turn"
        print(
            f"{row['proxy']:18} {row['requests']} requests {how}, budget for {row['fits']}: "
            f"{row['reached_the_model']} reached the model, {row['served']} were answered"
        )


if __name__ == "__main__":
    main()
