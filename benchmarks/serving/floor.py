"""
The floor: what a good engineer would write in an afternoon, with nothing of what a lender needs.

uvicorn, httptools and uvloop, one ASGI function, onnxruntime on one thread; OIP v2's infer call
with JSON and with binary tensors, no keys, no meter, no receipt.

    python -m benchmarks.serving.floor MODEL --port PORT [--certificate FILE --key FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvicorn

from benchmarks.serving.models import session

HEADER_LENGTH = b"inference-header-content-length"


class Tensor(msgspec.Struct):
    """An input."""

    name: str
    shape: list[int]
    data: list[float] | None = None


class Query(msgspec.Struct):
    """A query."""

    inputs: list[Tensor]


_queries = msgspec.json.Decoder(Query)


class Floor:
    """The ASGI application."""

    def __init__(self, model: Path) -> None:
        self._session = session(model)
        (self._output,) = [one.name for one in self._session.get_outputs()]

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        assert scope["type"] == "http"
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message["body"])
            more = message.get("more_body", False)
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        length = dict(scope["headers"]).get(HEADER_LENGTH)
        if length is None:
            (tensor,) = _queries.decode(body).inputs
            array = np.array(tensor.data, np.float32).reshape(tensor.shape)
        else:
            (tensor,) = _queries.decode(memoryview(body)[: int(length)]).inputs
            array = np.frombuffer(body, np.float32, offset=int(length)).reshape(tensor.shape)
        (answer,) = self._session.run([self._output], {tensor.name: array})
        output: dict[str, Any] = {
            "name": self._output, "datatype": "FP32", "shape": answer.shape,
        }  # fmt: skip
        headers = []
        if length is None:
            output["data"] = answer.ravel().tolist()
            reply = msgspec.json.encode({"model_name": "floor", "outputs": [output]})
        else:
            output["parameters"] = {"binary_data_size": answer.nbytes}
            reply = msgspec.json.encode({"model_name": "floor", "outputs": [output]})
            headers.append((HEADER_LENGTH, b"%d" % len(reply)))
            reply += answer.tobytes()
        headers += [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply)),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    options = parser.parse_args()
    uvicorn.run(
        Floor(options.model),  # type: ignore[arg-type]  # its types are ASGI's, not uvicorn's own
        port=options.port,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="warning",
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
    )


if __name__ == "__main__":
    main()
