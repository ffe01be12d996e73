"""
I5: nothing of a query leaves the enclave but its answer.

Real processes at their most talkative, and a relay that decrypts every byte to the custodian. Then
all that anybody sees but the consumer is searched: those bytes, every log, metric, event and file,
what webhooks are told and what goes out as traces.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import http.server
import json
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aigovtool.custodian.data import DataFolder
from aigovtool.demo.stage import Process, Stage, free_port
from aigovtool.demo.story import ASSETS
from aigovtool.wire.oip import encode_infer_request
from aigovtool.wire.ticket import read_ticket, to_toml
from tests.system.tap import Tap

INFER = "/v2/models/digits/infer"
CANARY = np.float32(7313.1377)
WORD = "kanarienvogel"  # in a query, wherever text can be
WISH = "fragespecht"  # a consumer's reason: the custodian's to know, and nobody's to log
VERDICT = "richterstar"  # an operator's reason for a stop: the consumers' to know
TRACE = "c0ffee00c0ffee00c0ffee00c0ffee00"  # a consumer's own: the custodian must not learn it
TOLD = ("request.opened", "request.denied", "loan.stopped", "session.stop_proof", "session.ended")
LOUD = ("--log-level", "debug", "--log-format", "json")
BODY_LIMIT = 200_000


def image(value: float = 0.0, batch: int = 1) -> bytes:
    tensor = {"name": "image", "shape": [batch, 8, 8], "datatype": "FP32"}
    return json.dumps({"inputs": [{**tensor, "data": [value] * (64 * batch)}]}).encode()


def forms_of(what: str, numbers: np.ndarray) -> dict[str, bytes]:  # type: ignore[type-arg]
    """Every form in which *numbers* could lie somewhere."""
    forms = {f"{what} decimal": repr(float(numbers[0])).encode()}
    for order in "<>":
        data = numbers.astype(f"{order}f4").tobytes()
        forms[f"{what} raw {order}"] = data
        forms[f"{what} hex {order}"] = data.hex().encode()
        forms[f"{what} doubles {order}"] = numbers.astype(f"{order}f8").tobytes()
        for start in range(3):
            text = base64.b64encode(b"\0" * start + data)
            forms[f"{what} base64 {order} {start}"] = text[4 if start else 0 : -4]
    return forms


def lines_of(process: Process) -> list[dict[str, object]]:
    """The log of a server, line by line; what is not of the log is talk."""
    return [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]


class Collector:
    """Takes and keeps, head and body, whatever is posted to it."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        kept = self.kept

        class Take(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                kept.append(f"{self.path}\n{self.headers}".encode() + body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing is said of it."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def all(self) -> bytes:
        return b"\n".join(self.kept)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collectors() -> Iterator[tuple[Collector, Collector]]:
    """For webhooks and for traces."""
    both = Collector(), Collector()
    yield both
    for each in both:
        each.close()


def test_a_query_is_nowhere_but_in_its_answer(
    tmp_path: Path, collectors: tuple[Collector, Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks, traces = collectors
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", traces.url)
    with Stage(tmp_path / "stage") as stage:
        assert stage.init().code == 0
        tap = Tap(DataFolder(stage.data), to_port=stage.custodian_port)
        custodian = stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"), "--num-requests", "12",
            "--lease-duration", "1", *LOUD,
        )  # fmt: skip
        events = [word for kind in TOLD for word in ("--event", kind)]
        assert stage.custodian("webhook", "add", hooks.url, *events).code == 0
        ticket = read_ticket(stage.data / "loan.toml")
        diverted = stage.folder / "tapped.toml"
        diverted.write_text(to_toml(ticket).replace(ticket.custodian, f"127.0.0.1:{tap.port}"))
        metrics = free_port()
        enclave, port = stage.serve_enclave(
            "enclave", "--metrics-listen", f"127.0.0.1:{metrics}",
            "--max-body-bytes", str(BODY_LIMIT), *LOUD,
            ticket=diverted,
        )  # fmt: skip
        key = (stage.data / "consumer.key").read_text().strip()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        problems: list[bytes] = []

        def ask(body: bytes, *, path: str = INFER, **headers: str) -> tuple[int, bytes]:
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            try:
                connection.request("POST", path, body, {"Authorization": f"Bearer {key}", **named})
                answer = connection.getresponse()
                came = answer.status, answer.read()
            finally:
                connection.close()
            if came[0] != 200:
                problems.append(came[1])
            return came

        status, answer = ask(image(float(CANARY)))
        assert status == 200
        scores = np.array(json.loads(answer)["outputs"][0]["data"], np.float32)
        binary = encode_infer_request(
            {"image": np.full((1, 8, 8), CANARY, np.float32)}, binary=True
        )
        trace = {"traceparent": f"00-{TRACE}-c0ffee00c0ffee00-01"}
        assert ask(b"".join(binary.chunks), **dict(binary.headers), **trace)[0] == 200
        named = json.loads(image(float(CANARY))) | {"id": WORD}
        assert ask(json.dumps(named).encode(), User_Agent=WORD, Idempotency_Key=WORD)[0] == 200
        named["inputs"][0]["name"] = WORD
        assert ask(json.dumps(named).encode())[0] == 422
        named["inputs"][0] |= {"name": "image", "datatype": WORD}
        assert ask(json.dumps(named).encode())[0] in (400, 422)
        assert ask(b'{"' + WORD.encode())[0] == 400
        assert ask(image(float(CANARY), batch=2000))[0] == 413
        assert ask(image(), path=f"/v2/models/{WORD}/infer?{WORD}")[0] == 404
        picture = stage.folder / "input.json"
        picture.write_text(json.dumps(np.full((1, 8, 8), float(CANARY)).tolist()))
        asked = stage.run(*stage.client("query", port, "--input", str(picture), "--json"))
        assert asked.code == 0, asked.stderr
        picture.unlink()

        # the budget is used up, and the consumer says why it needs more
        statuses = [ask(image(float(CANARY)))[0] for _ in range(12)]
        assert statuses[-1] == 429
        assert ask(image(float(CANARY)), Prefer="wait=1", Aigovtool_Reason=WISH)[0] == 429
        shown = stage.custodian("request", "list").stdout
        assert WISH in shown
        assert stage.custodian("loan", "stop", "--reason", VERDICT).code == 0
        stage.wait_for(enclave, lambda: "enclave.wiped" in enclave.output())
        assert ask(image(float(CANARY)))[0] == 503
        assert VERDICT.encode() in problems[-1]

        scraped = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10).read()
        token = (stage.data / "metrics.token").read_text().strip()
        page = urllib.request.Request(
            f"http://127.0.0.1:{stage.admin_port}/metrics",
            headers={"Authorization": f"Bearer {token}"},
        )
        scraped += urllib.request.urlopen(page, timeout=10).read()
        assert b"aigovtool_enclave_queries_total" in scraped
        assert b"aigovtool_custodian_events_total" in scraped
        events_said = stage.custodian("events", "--limit", "10000").stdout.encode()
        stage.wait_for(custodian, lambda: b'"session.stop_proof"' in hooks.all())
        assert enclave.terminate() == 0
        assert custodian.terminate() == 0

        said = tap.said()
        tap.close()
        assert b'"type":"' in b"".join(said)  # it was read in the clear
        assert WISH.encode() in b"".join(said)
        places = {f"to the custodian {index}": one for index, one in enumerate(said)}
        for path in stage.folder.rglob("*"):
            if path.is_file():
                places[str(path)] = path.read_bytes()
        places |= {"metrics": scraped, "events": events_said, "stderr": asked.stderr.encode()}
        for told in (hooks, traces):
            assert WISH.encode() not in told.all()
            assert VERDICT.encode() not in told.all()
            assert key.encode() not in told.all()
        for kind in ("request.opened", "loan.stopped"):
            assert f'"{kind}"'.encode() in hooks.all()
        assert bytes.fromhex(TRACE) in traces.all()  # so the query's own span is among them
        for form in (TRACE.encode(), bytes.fromhex(TRACE)):
            assert form not in b"".join(said)
        places |= {"webhooks": hooks.all(), "traces": traces.all()}
        needles = {"the word": WORD.encode(), "the number": b"7313.137"}
        needles |= forms_of("input", np.full(4, CANARY, np.float32))
        needles |= forms_of("output", scores[:4])
        places |= {f"problem {index}": one for index, one in enumerate(problems)}
        found = [
            (what, where)
            for what, needle in needles.items()
            for where, body in places.items()
            if needle in body and not (what == "the word" and where.startswith("problem"))
        ]
        assert found == []

        logs = {name: lines_of(one) for name, one in (("c", custodian), ("e", enclave))}
        for line in (*logs["c"], *logs["e"]):
            assert {"time", "level", "logger", "event", "message"} <= set(line)
            for secret in (WISH, VERDICT, key, ticket.token, token):
                assert secret not in json.dumps(line), line
        named_events = {line["event"] for line in logs["c"]}
        assert {"lease.granted", "request.opened", "loan.stopped"} <= named_events
        assert {"enclave.stopped", "enclave.wiped"} <= {line["event"] for line in logs["e"]}


@pytest.mark.parametrize("name", ["custodian", "enclave"])
def test_every_server_says_how_it_logs(name: str, tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        assert "--log-format [human|json]" in stage.run(name, "serve", "--help").stdout
