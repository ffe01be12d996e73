"""The servers that are ours to start: each in a process of its own, on the one core for servers."""

from __future__ import annotations

import datetime
import http.client
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aigovtool.demo.stage import Stage, free_port
from benchmarks.metering import NO_RECEIPTS, NOT_METERED, start
from benchmarks.serving.models import Floats, Served
from benchmarks.serving.wrk import Target

SERVER_CORE = 0
START_LIMIT_S = 120.0
HEADER_LENGTH = "Inference-Header-Content-Length"
CREDITS = 2_000_000_000
MAX_LEASE_CREDITS = 1_000_000
OURS = {
    "aigovtool": "",
    "aigovtool, no receipts": NO_RECEIPTS,
    "aigovtool, TLS only": NOT_METERED + NO_RECEIPTS,
}
BINARY, JSON = "binary", "JSON"


@dataclass(frozen=True)
class Server:
    """
    A server that runs, and how it is asked.

    Args:
        encodings: of `BINARY` and `JSON`, those that it takes.
        target: by encoding.
    """

    name: str
    targets: dict[str, Target]

    def answer(self, encoding: str) -> Floats:
        """Ask once, and return the first output."""
        target = self.targets[encoding]
        scheme, _, rest = target.url.partition("://")
        address, slash, path = rest.partition("/")
        connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(address, context=unverified(), timeout=30)
            if scheme == "https"
            else http.client.HTTPConnection(address, timeout=30)
        )
        try:
            connection.request("POST", slash + path, target.body, target.headers)
            reply = connection.getresponse()
            body, length = reply.read(), reply.getheader(HEADER_LENGTH)
        finally:
            connection.close()
        if reply.status != 200:
            raise AssertionError(f"{self.name}: {reply.status} {body[:300]!r}")
        return read_answer(body, length)


def read_answer(body: bytes, length: str | None) -> Floats:
    """Return the first output of an answer in OIP, whichever way it is encoded."""
    import json

    head = json.loads(body if length is None else body[: int(length)])
    (output,) = head["outputs"][:1]
    if "data" in output:
        return np.array(output["data"], np.float32).reshape(output["shape"])
    assert length is not None
    return np.frombuffer(body, np.float32, offset=int(length)).reshape(output["shape"])


def unverified() -> ssl.SSLContext:
    """A loopback peer that is measured and not judged."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def targets(url: str, model: Served, **headers: str) -> dict[str, Target]:
    """Return how an OIP server is asked at *url*."""
    body, length = model.binary_body
    sized = {HEADER_LENGTH: str(length), "Content-Type": "application/octet-stream"}
    return {
        BINARY: Target(url, body, {**headers, **sized}),
        JSON: Target(url, model.json_body, {**headers, "Content-Type": "application/json"}),
    }


def pinned(
    stage: Stage, name: str, command: list[str], port: int, *, core: int = SERVER_CORE
) -> None:
    """Start a server on its *core*, to end with *stage*, and wait for its port."""
    log = stage.folder / f"{name}.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process = stage.adopt(name, popen, log)
    stage.wait_for(process, lambda: _listens(port), START_LIMIT_S)


def floors(stage: Stage, model: Served) -> list[Server]:
    """The floor, plain and with TLS."""
    certificate, key = _identity(stage.folder)
    made = []
    for name, scheme, more in (
        ("floor with TLS", "https", ["--certificate", str(certificate), "--key", str(key)]),
        ("floor", "http", []),
    ):
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.serving.floor", str(model.path)]
        pinned(stage, f"{name} {model.name}", [*command, "--port", str(port), *more], port)
        url = f"{scheme}://127.0.0.1:{port}/v2/models/{model.name}/infer"
        made.append(Server(name, targets(url, model)))
    return made


def ours(stage: Stage, model: Served) -> list[Server]:
    """The enclave as a borrower runs it, under a real custodian, and without some of its parts."""
    assert stage.init().code == 0
    stage.serve_custodian("--upload", str(model.path), "--num-requests", str(CREDITS))
    key = (stage.data / "consumer.key").read_text().strip()
    made = []
    for name, change in OURS.items():
        port = start(stage, name, change)
        url = f"https://127.0.0.1:{port}/v2/models/{model.name}/infer"
        made.append(Server(name, targets(url, model, Authorization=f"Bearer {key}")))
    return made


def until(ready: Callable[[], bool], limit_s: float) -> None:
    """Poll *ready* until it holds."""
    begin_s = time.monotonic()
    while not ready():
        assert time.monotonic() - begin_s < limit_s
        time.sleep(0.1)


def _listens(port: int) -> bool:
    import socket

    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _identity(folder: Path) -> tuple[Path, Path]:
    """Make a key on P-256 and a certificate for it, of the kind that the enclave makes."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = folder / "floor.pem", folder / "floor.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths
