"""What the serving benchmark compares with answers as onnxruntime does, and its tables add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving.__main__ import FLOOR, Row, summary, table
from benchmarks.serving.floor import Floor
from benchmarks.serving.models import Served, make
from benchmarks.serving.servers import BINARY, HEADER_LENGTH, JSON, read_answer, targets


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    return make(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("encoding", [BINARY, JSON])
@pytest.mark.parametrize("name", ["tiny", "convnet", "covid"])
async def test_the_floor_gives_the_engines_answer(
    models: dict[str, Served], name: str, encoding: str
) -> None:
    model = models[name]
    target = targets("http://localhost/infer", model)[encoding]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": target.body}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(key.lower().encode(), value.encode()) for key, value in target.headers.items()]
    await Floor(model.path)({"type": "http", "headers": headers}, receive, send)
    start, body = sent
    assert start["status"] == 200
    length = dict(start["headers"]).get(HEADER_LENGTH.lower().encode())
    assert (length is None) is (encoding == JSON)
    answer = read_answer(body["body"], None if length is None else length.decode())
    np.testing.assert_allclose(answer, model.answer, rtol=1e-5)
    assert len(set(np.round(answer.ravel(), 3).tolist())) > 1  # it says something


def test_ratios_are_taken_within_a_round(tmp_path: Path) -> None:
    floor = Row(FLOOR, [100.0, 10.0, 1000.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    ours = Row("ours", [50.0, 20.0, 2000.0], [3.0, 1.0, 2.0], [9.0, 8.0, 7.0])
    rows = summary([floor, ours])
    assert [row["ratio"] for row in rows] == [1.0, 2.0]
    assert (rows[1]["p50_ms"], rows[1]["p99_ms"]) == (2.0, 8.0)
    shown = table([{"model": "m", "encoding": JSON, "connections": 8, "rows": rows}])
    assert "| ours | 50.0 | 2.0 | 2.0 | 8.0 |" in shown
