"""The load: wrk, a compiled client that asks again as soon as it is answered, on its own core."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

LOAD_CORE = 1
REQUEST_LIMIT_S = 20
_MARK = "measured "
_SCRIPT = """
wrk.method = "POST"
wrk.body = io.open({body}, "rb"):read("*a")
{headers}
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('%s{{"requests":%d,"us":%d,"p50_us":%d,"p99_us":%d,' ..
    '"wrong":{{"refused":%d,"not connected":%d,"broken off":%d,"not written":%d,"late":%d}}}}\\n',
    "{mark}", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
"""


@dataclass(frozen=True)
class Target:
    """What is asked: an address, and a request with its headers."""

    url: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What one run gave: requests a second, and latencies in ms."""

    per_second: float
    p50_ms: float
    p99_ms: float


def check_installed() -> None:
    """End the program when there is no wrk."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is needed: apt-get install wrk")


class NothingError(Exception):
    """A server gave a wrong answer under load, or none at all."""


def load(target: Target, *, connections: int, seconds: float) -> Seen:
    """Load *target*; raises NothingError unless it answers, and every answer is a 200."""
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "query.lua")
        body.write_bytes(target.body)
        lines = [f"wrk.headers[{_lua(n)}] = {_lua(v)}" for n, v in target.headers.items()]
        script.write_text(
            _SCRIPT.format(body=_lua(str(body)), headers="\n".join(lines), mark=_MARK)
        )
        done = subprocess.run(
            [
                "taskset", "-c", str(LOAD_CORE), "wrk", "--threads", "1",
                "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s",
                "--timeout", f"{REQUEST_LIMIT_S}s", "--script", str(script), target.url,
            ],
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
    found = json.loads(done.stdout.partition(_MARK)[2])
    if wrong := {what: count for what, count in found["wrong"].items() if count}:
        counted = ", ".join(f"{count} {what}" for what, count in wrong.items())
        raise NothingError(f"of {found['requests']} queries {counted}")
    if not found["requests"]:
        raise NothingError(f"no answer within {seconds:g} s")
    return Seen(
        per_second=found["requests"] / found["us"] * 1e6,
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
    )


def _lua(text: str) -> str:
    return json.dumps(text)  # of the printable ASCII here, the same in both
