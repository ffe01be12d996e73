"""Other servers: each in an environment of its own, pinned by hash, made once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aigovtool.demo.stage import free_port
from benchmarks.serving.models import Served
from benchmarks.serving.servers import (
    BINARY,
    JSON,
    SERVER_CORE,
    START_LIMIT_S,
    Server,
    targets,
)

HERE = Path(__file__).parent
REQUIREMENTS = Path(__file__).parents[3] / "requirements"
ENVIRONMENTS = Path.home() / ".cache" / "aigovtool-benchmarks"
END_LIMIT_S = 10.0


@dataclass(frozen=True)
class Peer:
    """
    Another server.

    Args:
        requirements: name of its lock file, without ``bench-`` and ``.txt``.
        command: from its environment's ``bin``, a work folder, a model and a port, what starts it.
        encodings: those of `BINARY` and `JSON` that it takes.
    """

    name: str
    requirements: str
    command: Callable[[Path, Path, Served, int], list[str]]
    encodings: tuple[str, ...]


def _script(name: str) -> Callable[[Path, Path, Served, int], list[str]]:
    def command(binaries: Path, _: Path, model: Served, port: int) -> list[str]:
        script = str(HERE / f"{name}_model.py")
        return [str(binaries / "python"), script, str(model.path), model.name, str(port)]

    return command


def _mlserver(binaries: Path, folder: Path, model: Served, port: int) -> list[str]:
    settings = {
        "http_port": port, "grpc_port": free_port(), "metrics_endpoint": None,
        "parallel_workers": 0, "debug": False, "host": "127.0.0.1",
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(
        json.dumps(
            {
                "name": model.name,
                "implementation": "mlserver_model.Onnx",
                "parameters": {"uri": str(model.path)},
            }
        )
    )
    return [str(binaries / "mlserver"), "start", str(folder)]


def _bentoml(binaries: Path, _: Path, model: Served, port: int) -> list[str]:
    serve = ["serve", "bentoml_model:Onnx", "--host", "127.0.0.1", "--port", str(port)]
    return [str(binaries / "bentoml"), *serve, "--working-dir", str(HERE)]


PEERS = (
    Peer("MLServer", "mlserver", _mlserver, (JSON,)),
    Peer("KServe SDK", "kserve", _script("kserve"), (JSON, BINARY)),
    Peer("LitServe", "litserve", _script("litserve"), (JSON,)),
    Peer("BentoML, own ASGI", "bentoml", _bentoml, (JSON,)),
    Peer("pytriton", "pytriton", _script("pytriton"), (JSON, BINARY)),
)


def environment(peer: Peer) -> Path:
    """Make *peer*'s environment, unless it is there; return its ``bin``."""
    lock = REQUIREMENTS / f"bench-{peer.requirements}.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = ENVIRONMENTS / f"{peer.requirements}-{digest}"
    if not (folder / "whole").exists():
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        install = [uv, "pip", "install", "--quiet", "--python", python, "--require-hashes"]
        subprocess.run([*install, "-r", str(lock)], check=True)
        (folder / "whole").touch()
    return folder / "bin"


@contextlib.contextmanager
def served(peer: Peer, model: Served, folder: Path) -> Iterator[Server]:
    """Run *peer* with *model* on the servers' core, for the length of the block."""
    folder.mkdir(parents=True)
    port = free_port()
    binaries = environment(peer)
    log = folder / "log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [
                "taskset", "-c", str(SERVER_CORE),
                *peer.command(binaries, folder, model, port),
            ],
            stdout=output,
            stderr=output,
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{binaries}:{os.environ['PATH']}",
                "PYTHONPATH": str(HERE),
                "BENCHMARK_MODEL": str(model.path),
                "BENTOML_DO_NOT_TRACK": "true",
            },
            start_new_session=True,  # some have workers: they end together
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/v2/models/{model.name}/infer"
        found = targets(url, model)
        server = Server(peer.name, {encoding: found[encoding] for encoding in peer.encodings})
        begin_s = time.monotonic()
        while not _answers(server):
            if popen.poll() is not None or time.monotonic() - begin_s > START_LIMIT_S:
                raise RuntimeError(f"{peer.name} does not serve: {log.read_text()[-1500:]}")
            time.sleep(0.2)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(END_LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


def _answers(server: Server) -> bool:
    try:
        server.answer(JSON)
    except (OSError, AssertionError, http.client.HTTPException):
        return False
    return True
