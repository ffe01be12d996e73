"""
The story of a model of tensors: lend, verify, query, run out, wait, free more, block, refuse, stop.
"""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aigovtool.demo.stage import Outcome, Process, Stage, tampered_copy
from aigovtool.demo.steps import Story, check, succeeded

BUDGET = 5
FREED = 4
CUT_OFF_LIMIT_S = 10.0  # two leases' time; the measured value is printed
ASSETS = Path(__file__).parent / "assets"


@dataclass
class QueriesStory(Story):
    """A model of tensors, metered by the query."""

    waiting: Process | None = None
    asked: int = 0
    samples: list[Path] = field(default_factory=lambda: sorted((ASSETS / "samples").glob("*.png")))

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("custodian makes keys, database and a simulated root", self.make_custodian),
            (f"custodian seals the model and lends it for {BUDGET} queries", self.lend),
            ("enclave is attested, gets the key and loads the model", self.host),
            ("consumer verifies the enclave before it sends anything", self.verify),
            ("real inputs get the right answers, and the count goes down", self.query),
            ("the budget is used up, and the next query is refused", self.run_out),
            ("a client waits for credits", self.wait),
            (f"custodian frees {FREED} more by the original's curl call", self.free_more),
            ("a blocked consumer is refused", self.block),
            ("unblocked, it is served again", self.unblock),
            ("an enclave with one changed line is refused", self.tamper),
            ("custodian shuts down, and queries fail", self.stop),
        ]

    def lend(self) -> str:
        self.custodian = self.stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"),
            "--num-requests", str(BUDGET),
        )  # fmt: skip
        files = ("loan.toml", "consumer.key", "manifest.toml", "admin.token")
        check(all((self.stage.data / name).exists() for name in files), "a file is missing")
        return "digits.onnx is now ciphertext; " + ", ".join(files) + " written"

    def verify(self) -> str:
        seen = succeeded(
            self.stage.run(*self.stage.client("verify", self.enclave_port, "--json"))
        ).json()
        check(seen["simulated"] is True, "the simulated TEE was not called simulated")
        return f"{seen['tee']} {seen['measurement'][:16]}…, {seen['remaining']} queries left"

    def query(self) -> str:
        told = []
        for index in range(BUDGET):
            sample = self.samples[index % len(self.samples)]
            seen = succeeded(self._ask(sample)).json()
            check_answer(sample, seen)
            left = BUDGET - 1 - index
            check(seen["remaining"] == left, f"{seen['remaining']} left, not {left}")
            told.append(f"{seen['answer']['label']}({left} left)")
        return "  ".join(told)

    def run_out(self) -> str:
        refused = self._ask(self.samples[0])
        check(refused.code == 1, f"exit code {refused.code}, not 1")
        check("budget" in refused.stderr, "the refusal does not speak of the budget")
        return _refusal(refused)

    def wait(self) -> str:
        self.waiting = self.stage.start(
            "waiting-client",
            self.stage.client(
                "query", self.enclave_port, "--input", str(self.samples[1]), "--json",
                "--reason", "demo: one more batch",
            ),
        )  # fmt: skip
        waiting = self.waiting
        self.stage.wait_for(waiting, lambda: "waiting" in waiting.output())
        return "it says so, and holds on"

    def free_more(self) -> str:
        waiting = self.waiting
        assert waiting is not None
        how = supply(self.stage, FREED)
        begin = time.monotonic()
        code = waiting.popen.wait(30)
        seconds = time.monotonic() - begin
        check(code == 0, f"the waiting client ended with {code}: {waiting.output()[-300:]}")
        check_answer(self.samples[1], _last_json(waiting.output()))
        return f"{how}; the waiting client had its answer {seconds * 1000:.0f} ms later"

    def block(self) -> str:
        consumers = succeeded(self.stage.custodian("consumer", "list")).json()
        self.consumer = consumers[0]["consumer"]
        succeeded(self.stage.custodian("block", self.consumer, "--reason", "demo"))
        refused = self._ask(self.samples[2])
        check(refused.code == 1, f"exit code {refused.code}, not 1")
        check("blocked" in refused.stderr, "the refusal does not say blocked")
        return _refusal(refused)

    def unblock(self) -> str:
        succeeded(self.stage.custodian("unblock", self.consumer))
        seen = succeeded(self._ask(self.samples[2])).json()
        check_answer(self.samples[2], seen)
        return f"{seen['answer']['label']} ({seen['remaining']} left)"

    def tamper(self) -> str:
        process, _ = self.stage.serve_enclave(
            "tampered-enclave",
            environment=tampered_copy(self.stage.folder / "tampered"),
            wait=False,
        )
        self.stage.wait_for(process, lambda: "tdx.mr_td" in self._events() or not process.alive())
        check("tdx.mr_td" in self._events(), "the custodian did not name the measurement")
        process.kill()
        return "the measurement differs: no key, no model, no lease"

    def stop(self) -> str:
        assert self.custodian is not None
        begin = time.monotonic()
        self.custodian.terminate()
        while (outcome := self._ask(self.samples[3])).code == 0:
            check(time.monotonic() - begin < CUT_OFF_LIMIT_S, "queries are still served")
        check(outcome.code == 3, f"exit code {outcome.code}, not 3: {outcome.stderr[-300:]}")
        return f"refused {time.monotonic() - begin:.1f} s after SIGTERM; {_refusal(outcome)}"

    def _ask(self, sample: Path) -> Outcome:
        return self.stage.run(
            *self.stage.client(
                "query", self.enclave_port, "--input", str(sample), "--no-wait", "--json"
            )
        )

    def _events(self) -> str:
        return succeeded(self.stage.custodian("events")).stdout


def supply(stage: Stage, credits: int) -> str:
    """Make the original's call, with curl where there is one, else the same request by Python."""
    token = (stage.data / "admin.token").read_text().strip()
    url = f"https://127.0.0.1:{stage.admin_port}/supply_inferences"
    form = f"number_inferences={credits}"
    if curl := shutil.which("curl"):
        # the token goes by standard input: the arguments of a process are visible to others
        done = subprocess.run(  # noqa: S603
            [curl, "-k", "-X", "POST", "-d", form, url, "-sSf", "--config", "-"],
            input=f'user = "admin:{token}"\n',
            text=True,
            capture_output=True,
            timeout=30,
            check=False,
        )
        check(done.returncode == 0, f"curl ended with {done.returncode}: {done.stderr.strip()}")
        return f'curl -k -X POST -d "{form}" {url} -u admin:$TOKEN'
    request = urllib.request.Request(url, data=form.encode())
    basic = base64.b64encode(f"admin:{token}".encode()).decode()
    request.add_header("Authorization", f"Basic {basic}")
    unverified = ssl.create_default_context()  # as curl's -k; the call stays on loopback
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    with urllib.request.urlopen(request, timeout=30, context=unverified):  # noqa: S310
        return f"POST {url} with {form} (no curl on this machine)"


def check_answer(sample: Path, seen: Any) -> None:
    """The samples are named for what they show: ``digit-7-a.png`` shows a seven."""
    shown = sample.stem.split("-")[1]
    label = str(seen["answer"]["label"])
    check(label == shown, f"{sample.name} was taken for {label}")


def _refusal(outcome: Outcome) -> str:
    """The line that says why, without the talk around it."""
    lines = [line.strip() for line in outcome.stderr.splitlines()]
    return next((line for line in lines if line.startswith("error:")), "refused without a word")


def _last_json(text: str) -> Any:
    """The log holds talk and the result; the result is the JSON object at its end."""
    return json.loads(text[text.index("\n{") if "\n{" in text else text.index("{") :])
