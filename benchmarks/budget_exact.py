"""
Many queries at once against few credits over several enclaves: exactly as many are served.

    python -m benchmarks.budget_exact [--queries 10000] [--credits 1000] [--enclaves 4] [--json]

Real processes: one custodian, the enclaves, and consumers by the SDK in this process, each with its
receipt verified. All queries are under way at once; each is asked until it was served or the
enclave says that the budget is used up while no enclave holds a lease any more. Ends with 1 when
it was not exactly the budget.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aigovtool
from aigovtool.custodian.records import LoanTerms
from aigovtool.drill.consumers import IMAGE
from aigovtool.drill.scene import Scene, open_scene
from aigovtool.errors import AIGovToolError, BudgetExhaustedError

LEASE_S = 2.0
CLIENTS_EACH = 4  # with 64 connections each
LIMIT_S = 240.0
AGAIN_S = 0.5


async def ask_all(scene: Scene, queries: int, credits: int) -> dict[str, Any]:
    """Ask *queries* at once, spread over the enclaves, and count what came of them."""
    clients = [
        await aigovtool.connect_async(
            f"127.0.0.1:{enclave.port}",
            manifest=scene.folder.manifest,
            api_key=scene.folder.consumer_key.read_text().strip(),
        )
        for enclave in scene.enclaves
        for _ in range(CLIENTS_EACH)
    ]
    refused: Counter[str] = Counter()
    receipts = set()
    end_s = time.monotonic() + LIMIT_S
    over = asyncio.Event()

    async def one(number: int) -> bool:
        client = clients[number % len(clients)]
        while time.monotonic() < end_s:
            try:
                result = await client.infer({"image": IMAGE})
            except AIGovToolError as error:
                refused[error.code] += 1
                if isinstance(error, BudgetExhaustedError) and over.is_set():
                    return False
                await asyncio.sleep(AGAIN_S)  # what another enclave holds may come back
                continue
            receipt = result.receipt.receipt
            receipts.add((receipt.session, receipt.number))
            if len(receipts) >= credits:
                over.set()
            return True
        return False

    begin_s = time.monotonic()
    outcomes = await asyncio.gather(*(one(number) for number in range(queries)))
    seconds = time.monotonic() - begin_s
    for client in clients:
        await client.aclose()
    return {
        "queries": queries,
        "credits": credits,
        "enclaves": len(scene.enclaves),
        "served": outcomes.count(True),
        "receipts": len(receipts),
        "refused": dict(refused),
        "seconds": round(seconds, 1),
    }


def run(folder: Path, *, queries: int, credits: int, enclaves: int) -> dict[str, Any]:
    with open_scene(folder) as scene:
        scene.lend(credits, LoanTerms(lease_duration_s=LEASE_S))
        for _ in range(enclaves):
            scene.add_enclave()
        counts = asyncio.run(ask_all(scene, queries, credits))
        scene.settle(limit_s=30.0)
        account = scene.account()
    counts["spent"], counts["left"] = account.spent, account.left
    counts["exact"] = counts["served"] == counts["receipts"] == account.spent == credits
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--credits", type=int, default=1_000)
    parser.add_argument("--enclaves", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aigovtool-exact-") as folder:
        counts = run(
            Path(folder),
            queries=options.queries,
            credits=options.credits,
            enclaves=options.enclaves,
        )
    if options.json:
        print(json.dumps(counts, indent=2))
    else:
        print(
            f"{counts['queries']} queries at once, {counts['credits']} credits, "
            f"{counts['enclaves']} enclaves: {counts['served']} served in {counts['seconds']} s; "
            f"the ledger says {counts['spent']} spent, {counts['left']} left"
        )
    sys.exit(0 if counts["exact"] else 1)


if __name__ == "__main__":
    main()
