"""SIGTERM under load: what is in flight is answered, nothing is forfeited, the exit is clean."""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import signal
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.store.sqlite import SqliteStore
from aigovtool.demo.stage import Process, Stage
from aigovtool.demo.story import ASSETS

BEFORE = "2020-01-01T00:00:00Z"
INFER = "/v2/models/digits/infer"
BODY = json.dumps(
    {
        "inputs": [
            {"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": [0.0] * 64},
        ]
    }
).encode()


class Load:
    """Closed loops of queries until the server is gone; counts what was answered."""

    def __init__(self, port: int, key: str, *, loops: int = 6) -> None:
        self.statuses: Counter[int] = Counter()
        self.cut: list[str] = []  # a query that was sent and got half an answer or none
        self._ended = threading.Event()
        self._port, self._key = port, key
        self._threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(loops)]
        for thread in self._threads:
            thread.start()

    def _loop(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=30, context=context
        )
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            while not self._ended.is_set():
                connection.request("POST", INFER, BODY, headers)
                answer = connection.getresponse()
                answer.read()
                self.statuses[answer.status] += 1
        except http.client.IncompleteRead as error:
            self.cut.append(repr(error))
        except (OSError, http.client.HTTPException):
            pass  # closed between two queries, or not listening any more
        finally:
            connection.close()

    def until(self, answered: int) -> None:
        begin = time.monotonic()
        while self.statuses[200] < answered:
            assert time.monotonic() - begin < 60, self.statuses
            time.sleep(0.02)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path / "stage") as made:
        assert made.init().code == 0
        yield made


def lend(stage: Stage, *more: str) -> Process:
    return stage.serve_custodian(
        "--upload", str(ASSETS / "digits.onnx"), "--interface", str(ASSETS / "interface.json"),
        "--num-requests", "100000", *more,
    )  # fmt: skip


def account(stage: Stage) -> dict[str, int]:
    return dict(stage.custodian("loan", "list").json()[0]["account"])


def key_of(stage: Stage) -> str:
    return (stage.data / "consumer.key").read_text().strip()


def test_an_enclave_that_ends_under_load_forfeits_nothing(stage: Stage) -> None:
    lend(stage)
    enclave, port = stage.serve_enclave()
    load = Load(port, key_of(stage))
    load.until(50)
    assert enclave.terminate() == 0
    load.end()
    assert load.cut == []
    after = account(stage)
    assert (after["leased"], after["forfeited"]) == (0, 0)
    assert after["spent"] >= load.statuses[200]
    assert after["spent"] <= load.statuses[200] + 6  # answers whose connection closed first
    kinds = [one["kind"] for one in stage.custodian("events", "--limit", "10000").json()]
    assert "session.stop_proof" in kinds
    assert "lease.forfeited" not in kinds
    output = stage.folder / "audit.csv"
    exported = stage.custodian("audit", "export", "--format", "csv", "--output", str(output))
    rows = list(csv.DictReader(io.StringIO(output.read_text(), newline="")))
    assert exported.json()["events"] == len(rows) >= len(kinds)
    assert [row["kind"] for row in rows[: len(kinds)]] == kinds
    again = stage.run("custodian", "audit", "export", "--data", str(stage.data), "--since", BEFORE)
    assert [json.loads(line)["kind"] for line in again.stdout.splitlines()][: len(kinds)] == kinds


def test_a_custodian_that_ends_under_load_takes_what_is_leased_back(stage: Stage) -> None:
    custodian = lend(stage, "--lease-duration", "20")
    _, port = stage.serve_enclave()
    load = Load(port, key_of(stage))
    load.until(50)
    assert custodian.terminate() == 0
    load.end()
    assert load.cut == []
    store = SqliteStore.open(DataFolder(stage.data).ledger)
    with store.read() as tx:
        (loan,) = tx.loans()
    store.close()
    after, served = loan.account, load.statuses[200]
    assert (after.leased, after.forfeited) == (0, 0)
    assert served <= after.spent <= served + 6


def test_a_second_signal_ends_an_enclave_at_once(stage: Stage) -> None:
    custodian = lend(stage)
    enclave, port = stage.serve_enclave()
    load = Load(port, key_of(stage), loops=1)
    load.until(1)
    load.end()
    os.kill(custodian.popen.pid, signal.SIGSTOP)  # so that its farewell is waited for
    os.kill(enclave.popen.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert enclave.alive()
    os.kill(enclave.popen.pid, signal.SIGTERM)
    assert enclave.popen.wait(30) == -signal.SIGTERM  # 0 would be the end that it came to itself
