"""
A real enclave server that lends a language model of one word a token, on a thread of its own.

Its custodian is the one of the enclave's tests, its evidence that of a simulated platform, so that
a client can judge it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pytest

from aigovtool.attestation.dcap.verify import QUOTE
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import Custodian, Policy
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.loader import Loader
from aigovtool.sealing.manifest import ModelSignature
from aigovtool.simulation.policy import simulated_policy
from aigovtool.wire.enrolment import TokenPrice
from tests.channel.stand_in import CODE, Platform
from tests.enclave import models
from tests.enclave.conftest import RunningEnclave, running_enclave
from tests.enclave.custodian import FakeCustodian
from tests.enclave.talkers import Talker

BUDGET = 5000
MODEL = "tiny"
PRICE = TokenPrice(input=2, output=3)


class PlatformAttester:
    """Evidence of a simulated platform."""

    tee = Tee.SIMULATED

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def describe(self) -> str:
        return "a simulated platform"

    def evidence(self, report_data: bytes) -> Evidence:
        quote = self._platform.machine.quote(self._platform.mr_td, report_data)
        return Evidence(tee=self.tee, documents={QUOTE: quote})

    def endorsements(self) -> Endorsements:
        return self._platform.machine.endorsements(datetime.now(UTC))


class Lender:
    """
    Custodian and enclave.

    Args:
        model: what is lent.
    """

    def __init__(self, folder: Path, model: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
        async def load(*_: object) -> Talker:
            model.name = MODEL
            return model

        monkeypatch.setattr(Loader, "load", load)
        self._key = SigningKey.generate()
        self._platform = Platform.make()
        sealed = models.sealed(
            folder, self._key, ({"model.bin": b"weights"}, ModelSignature()),
            name=MODEL, format="words", entry="model.bin",
        )  # fmt: skip
        self._custodian = FakeCustodian(self._key, sealed, budget=BUDGET)
        self._custodian.tokens = PRICE
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @property
    def policy(self) -> Policy:
        return Policy(
            accept=(simulated_policy(self._platform.machine.root_sha256, CODE),),
            custodian=Custodian(public_key=self._key.public_key, loan=self._custodian.loan),
        )

    @property
    def address(self) -> str:
        return self._enclave.address

    @property
    def api_key(self) -> str:
        return self._custodian.alice.key

    def block(self) -> None:
        self._custodian.alice.blocked = True
        self._call(self._custodian.set_roster())

    def use_up(self) -> None:
        self.leave(0)

    def leave(self, credits: int) -> None:
        """Let the consumer have *credits* of its own and no more."""
        self._custodian.alice.budget = credits
        self._call(self._custodian.set_roster())

    def stop(self) -> None:
        self._call(self._custodian.set_state("stopped", "the lender said so"))

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        attester = PlatformAttester(self._platform)
        async with (
            self._custodian as custodian,
            running_enclave(custodian, attester=attester) as enclave,
        ):
            self._enclave: RunningEnclave = enclave
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)
