"""Nothing of a prompt is ever written by what computes it, whatever goes wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import smollm2

CANARY = "canary-5b07c9"

IN_A_FRESH_PROCESS = """
import logging, sys
from aigovtool.enclave.hardening import silence_libraries
silence_libraries()
logging.basicConfig(level=logging.DEBUG)
from aigovtool.enclave.runtime.llamacpp import Engine
from aigovtool.errors import AIGovToolError

path, canary = sys.argv[1:]
engine = Engine(path, slots=1, context=256, threads=1, repacked=False)
embedding = Engine(path, slots=1, context=64, threads=1, repacked=False, pooled=True)
refused = 0

def chat(**more):
    messages = [{"role": "user", "content": canary}]
    return {"messages": messages, "max_tokens": 2, "stream": True, **more}

def schema(schema):
    form = {"type": "json_schema", "json_schema": {"name": canary, "schema": schema}}
    return chat(response_format=form)

for kind, body in [
    ("chat", chat()),
    ("completion", {"prompt": canary, "max_tokens": 2}),
    ("completion", {"prompt": canary * 1000}),
    ("chat", chat(messages=canary)),
    ("chat", chat(tools=[{"type": canary}])),
    ("chat", chat(grammar="root ::= " + canary)),
    ("chat", schema({"type": canary})),
    ("chat", schema({"type": "string", "minLength": 10**8, "description": canary})),
    ("chat", schema({"properties": {canary: {"type": "array", "minItems": 10**6}}})),
]:
    try:
        engine.run(kind, body, lambda chunk: False)
    except AIGovToolError:
        refused += 1
    engine.ask("/v1/chat/completions/input_tokens", body)
for text in (canary, canary * 1000):
    try:
        embedding.embeddings([text])
    except AIGovToolError:
        refused += 1
engine.close()
embedding.close()
print("refused", refused)
print("said by Python", file=sys.stderr)
"""


@pytest.mark.xdist_group("gguf")
def test_nothing_is_printed_of_a_prompt_that_is_answered_or_refused() -> None:
    """Captured: the descriptors, to which libraries write past Python."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, str(smollm2.gguf()), CANARY],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "said by Python\n")
    first, number = done.stdout.split()
    assert first == "refused"
    assert int(number) >= 4


def test_what_libraries_print_goes_nowhere_and_what_python_prints_does_not() -> None:
    script = (
        "import os, sys\n"
        "from aigovtool.enclave.hardening import silence_libraries\n"
        "print('before'); silence_libraries(); print('after')\n"
        "print('said', file=sys.stderr)\n"
        "os.write(1, b'library'); os.write(2, b'library')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("before\nafter\n", "said\n")
