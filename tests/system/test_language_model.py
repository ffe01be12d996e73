"""
I1 to I6 of a language model, with real processes: SmolLM2 in an enclave, asked through the proxy.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from aigovtool.client.receipt_store import find_files
from aigovtool.custodian.data import DataFolder
from aigovtool.demo.stage import Process, Stage
from aigovtool.wire.codec import decode
from aigovtool.wire.receipt import Receipt, from_header
from aigovtool.wire.ticket import read_ticket, to_toml
from tests import smollm2
from tests.system.tap import Tap
from tests.system.test_faults import settled_account
from tests.system.test_statements import this_month, verify

pytestmark = pytest.mark.slow

STORY = "Write a very long story about a lighthouse and its keeper."  # it takes thousands of tokens
STOP_LIMIT_S = 5.0  # I2
LEASE_S = 2
SETTLE_GRACE_S = 5
WORD = "kanarienvogel"  # in prompts, wherever text can be
VERDICT = "richterstar"
LOUD = ("--log-level", "debug", "--log-format", "json")


@dataclass
class Lent:
    """A lent language model: a custodian, an enclave and the consumer's proxy."""

    stage: Stage
    custodian: Process
    enclave: Process
    port: int
    url: str
    model: str = field(init=False)

    def __post_init__(self) -> None:
        with self.client() as client:
            (model,) = client.models.list()
        self.model = model.id

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=120)

    def client_async(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=120)

    @property
    def key(self) -> str:
        return (self.stage.data / "consumer.key").read_text().strip()

    def ended(self) -> dict[str, int]:
        """End the enclave, which settles what it used, and return the loan's account."""
        assert self.enclave.terminate() == 0
        return settled_account(self.stage)

    def receipts(self) -> tuple[int, int]:
        """Return number and cost of the receipts that the proxy kept, which must be in order."""
        checked = self.stage.run(
            "client", "receipts", "check", "--json", "--log", str(self.stage.data / "log"),
            "--manifest", str(self.stage.data / "manifest.toml"),
        )  # fmt: skip
        assert checked.code == 0, checked.stdout + checked.stderr
        told = checked.json()
        return told["receipts"], told["cost"]


def enclave_of(stage: Stage, name: str = "enclave", *more: str, **how: Any) -> tuple[Process, int]:
    """One thread computes: on a busy machine, several wait for each other most of the time."""
    return stage.serve_enclave(name, "--intra-op-threads", "1", *more, **how)


def lent(stage: Stage, budget: int) -> Lent:
    custodian = stage.serve_custodian(
        "--upload", str(smollm2.gguf()), "--num-requests", str(budget)
    )
    return served(stage, custodian)


def lent_by_short_leases(stage: Stage, budget: int) -> Lent:
    """The same, with terms that `custodian serve` has no word for."""
    custodian = stage.serve_custodian()
    data = stage.data
    for made in (
        ("model", "seal", str(smollm2.gguf()), "--model-name", "small"),
        ("loan", "create", "--name", "short", "--model", "small", "--credits", str(budget),
         "--lease-duration", str(LEASE_S), "--settle-grace", str(SETTLE_GRACE_S),
         "--ticket", str(data / "loan.toml"), "--manifest", str(data / "manifest.toml")),
        ("consumer", "create", "--name", "x",
         "--out", str(data / "consumer.key")),
    ):  # fmt: skip
        outcome = stage.custodian(*made)
        assert outcome.code == 0, outcome.stderr
    return served(stage, custodian)


def served(stage: Stage, custodian: Process) -> Lent:
    enclave, port = enclave_of(stage)
    _, proxy = stage.serve_proxy(port)
    return Lent(stage, custodian, enclave, port, f"http://127.0.0.1:{proxy}/v1")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path / "stage") as made:
        assert made.init().code == 0
        yield made


@dataclass
class Told:
    """
    What came of one stream.

    Args:
        begun: set at its first piece, or its end.
        error: what cut or refused it.
        ended: when, by the wall clock; as events of the ledger have it.
    """

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    pieces: list[str] = field(default_factory=list)
    usage: Any = None
    finish_reason: str | None = None
    receipts: list[Receipt] = field(default_factory=list)
    error: openai.APIError | None = None
    ended: datetime | None = None

    async def listen(self, client: openai.AsyncOpenAI, model: str, most: int, said: str) -> None:
        try:
            async for event in await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": said}],
                max_tokens=most,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            ):
                self._take(event)
        except openai.APIError as error:
            self.error = error
        finally:
            self.ended = datetime.now(UTC)
            self.begun.set()

    def _take(self, event: Any) -> None:
        for choice in event.choices:
            if choice.delta.content:
                self.pieces.append(choice.delta.content)
                self.begun.set()
            self.finish_reason = choice.finish_reason or self.finish_reason
        self.usage = event.usage or self.usage
        told = (event.model_extra or {}).get("aigovtool", {"receipts": []})
        self.receipts += [receipt_in(header) for header in told["receipts"]]


def receipt_in(header: str) -> Receipt:
    return decode(from_header(header).payload, Receipt)


async def until_begun(*streams: Told) -> None:
    async with asyncio.timeout(120):
        await asyncio.gather(*(one.begun.wait() for one in streams))
    assert [one.error for one in streams] == [None] * len(streams)


# --- whoever asks ---------------------------------------------------------------------------------


async def test_openais_own_client_talks_and_nothing_else_listens(stage: Stage) -> None:
    lending = lent(stage, 10_000)
    said: Any = [{"role": "user", "content": "What is rain?"}]
    asked = {"model": lending.model, "messages": said, "max_tokens": 16, "temperature": 0}
    with lending.client() as client:
        whole = client.chat.completions.create(**asked)
        pieces = [
            event.choices[0].delta.content or ""
            for event in client.chat.completions.create(stream=True, **asked)
        ]
        plain = client.completions.create(model=lending.model, prompt="Rain is", max_tokens=4)
        vector = client.embeddings.create(model=lending.model, input="rain")
    async with lending.client_async() as client_async:
        whole_async = await client_async.chat.completions.create(**asked)
        streamed = Told()
        await streamed.listen(client_async, lending.model, 16, "What is rain?")
    text = whole.choices[0].message.content
    assert text
    assert "".join(pieces) == whole_async.choices[0].message.content == text
    assert ("".join(streamed.pieces), streamed.finish_reason) == (text, "length")
    assert len(vector.data[0].embedding) > 100

    listening = sockets_of(lending.enclave)
    assert listening.ports == {lending.port}
    assert listening.paths == set()

    answers = [whole, whole_async, plain, vector, streamed]
    tokens = sum(one.usage.total_tokens for one in answers) + whole.usage.total_tokens
    assert lending.ended()["spent"] == lending.receipts()[1] == tokens


@dataclass
class Listening:
    """What a process listens on: TCP ports, and unix sockets that a path leads to."""

    ports: set[int] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)


def sockets_of(process: Process) -> Listening:
    """Look into /proc for what *process* listens on."""
    folder = Path(f"/proc/{process.popen.pid}")
    own = {
        str(link.readlink()).removeprefix("socket:[").removesuffix("]")
        for link in (folder / "fd").iterdir()
    }
    found = Listening()
    for table in ("tcp", "tcp6"):
        for row in rows_of(folder / "net" / table):
            if row[9] in own and row[3] == "0A":  # LISTEN
                found.ports.add(int(row[1].rpartition(":")[2], 16))
    for row in rows_of(folder / "net" / "unix"):
        if row[6] in own and int(row[3], 16) & 0x10000:  # SO_ACCEPTCON
            unnamed = len(row) < 8 or not Path(row[7]).exists()
            found.paths |= set() if unnamed else {row[7]}
    return found


def rows_of(table: Path) -> list[list[str]]:
    return [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []


# --- how much -------------------------------------------------------------------------------------


async def test_32_streams_race_for_a_budget_of_400_tokens(stage: Stage) -> None:
    budget = 400
    lending = lent(stage, budget)
    streams = [Told() for _ in range(32)]
    async with lending.client_async() as client:
        await asyncio.gather(
            *(one.listen(client, lending.model, 16, "What is rain?") for one in streams)
        )
    served = [one for one in streams if one.error is None]
    tokens = sum(one.usage.total_tokens for one in served)
    assert 0 < tokens <= budget
    assert {type(one.error) for one in streams if one.error} == {openai.RateLimitError}
    least = min(one.usage.total_tokens for one in served)
    assert budget - tokens < least  # so what was refused could not be paid
    assert lending.ended()["spent"] == lending.receipts()[1] == tokens


# --- stops ----------------------------------------------------------------------------------------


async def test_a_stop_ends_all_streams_and_all_of_it_is_proven(stage: Stage) -> None:
    lending = lent(stage, 10_000)
    running, later = [Told() for _ in range(4)], [Told() for _ in range(4)]
    async with lending.client_async() as client, asyncio.TaskGroup() as tasks:
        for one in running:
            tasks.create_task(one.listen(client, lending.model, 800, STORY))
        await until_begun(*running)
        for one in later:  # all slots are taken
            tasks.create_task(one.listen(client, lending.model, 800, STORY))
        stopped = await asyncio.to_thread(stage.custodian, "stop", "--reason", VERDICT)
        assert stopped.code == 0, stopped.stderr
    (said,) = [one for one in stage.custodian("events").json() if one["kind"] == "loan.stopped"]
    decided = datetime.fromisoformat(said["time"])
    for one in (*running, *later):
        assert one.error is not None
        assert VERDICT in one.error.message
        assert one.ended is not None
        assert (one.ended - decided).total_seconds() < STOP_LIMIT_S
    account = lending.ended()
    receipts, cost = lending.receipts()
    assert account["spent"] == cost >= sum(len(one.pieces) for one in running)

    file = stage.folder / "statement.json"
    made = stage.custodian("statement", "--period", this_month(), "--output", str(file))
    assert made.code == 0, made.stderr
    (kept,) = find_files([stage.folder / "state"])
    verified = verify(
        stage, file, "--policy", str(stage.data / "manifest.toml"),
        "--log", str(stage.data / "log"), "--receipts", str(kept),
    )  # fmt: skip
    assert verified["ok"], verified["findings"]
    assert verified["receipts"] == {"counted": receipts, "outside": 0}
    assert made.json()["closing"]["spent"] == cost


async def test_kills_in_the_middle_of_streams_lose_no_count(stage: Stage) -> None:
    """The custodian's end cuts streams within a lease; the enclave's costs its lease, no more."""
    lending = lent_by_short_leases(stage, 8_000)
    async with lending.client_async() as client, asyncio.TaskGroup() as tasks:
        cut = Told()
        listening = tasks.create_task(cut.listen(client, lending.model, 1500, STORY))
        await until_begun(cut)
        gone = datetime.now(UTC)
        lending.custodian.kill()
        await listening
        assert cut.ended is not None
        assert (cut.ended - gone).total_seconds() < LEASE_S + 1
        assert cut.error is not None
        assert cut.error.code, cut.error

        stage.serve_custodian(name="custodian-again")
        after = Told()  # by a client that asks again when it is told to
        await after.listen(client.with_options(max_retries=10), lending.model, 8, "What is rain?")
        assert (after.error, after.finish_reason) == (None, "length")

        lost = Told()
        listening = tasks.create_task(lost.listen(client, lending.model, 1500, STORY))
        await until_begun(lost)
        lending.enclave.kill()
        await listening
        assert lost.error is not None
    account = settled_account(stage, limit_s=LEASE_S + SETTLE_GRACE_S + 30)
    leases = stage.custodian("lease", "list").json()
    forfeited = [one["credits"] for one in leases if one["state"] == "forfeited"]
    assert len(forfeited) >= 1
    assert account["forfeited"] == sum(forfeited)
    used = lending.receipts()[1]
    # what the dead enclave charged and could not tell is among what it forfeited
    assert used <= account["spent"] + account["forfeited"] <= account["granted"]
    assert account["spent"] >= after.usage.total_tokens


# --- another version ------------------------------------------------------------------------------


async def test_a_stream_is_finished_by_the_version_that_began_it(stage: Stage) -> None:
    lending = lent(stage, 10_000)
    sealed = stage.custodian("model", "seal", str(smollm2.gguf()), "--model-version", "2")
    assert sealed.code == 0, sealed.stderr
    second = sealed.json()["model"]
    async with lending.client_async() as client, asyncio.TaskGroup() as tasks:
        long = Told()
        tasks.create_task(long.listen(client, lending.model, 500, STORY))
        await until_begun(long)
        replaced = await asyncio.to_thread(
            stage.custodian, "loan", "replace-model", "--model", second
        )
        assert replaced.code == 0, replaced.stderr
        by = ""
        async with asyncio.timeout(60):
            while by != second:
                short = Told()
                await short.listen(client, lending.model, 1, "What is rain?")
                assert short.error is None
                by = short.receipts[0].model_digest.hex()
        assert long.ended is None
    assert (long.error, long.finish_reason) == (None, "length")
    assert long.usage.completion_tokens == 500
    assert second not in {one.model_digest.hex() for one in long.receipts}
    assert lending.ended()["spent"] == lending.receipts()[1]


# --- I5 -------------------------------------------------------------------------------------------


def test_nothing_of_a_conversation_or_of_the_weights_is_anywhere(
    stage: Stage,
) -> None:
    tap = Tap(DataFolder(stage.data), to_port=stage.custodian_port)
    custodian = stage.serve_custodian(
        "--upload", str(smollm2.gguf()), "--num-requests", "2000", *LOUD
    )
    ticket = read_ticket(stage.data / "loan.toml")
    diverted = stage.folder / "tapped.toml"
    diverted.write_text(to_toml(ticket).replace(ticket.custodian, f"127.0.0.1:{tap.port}"))
    temporary = stage.folder / "temporary"
    temporary.mkdir()
    enclave, port = enclave_of(
        stage, "enclave", *LOUD, ticket=diverted, environment={"TMPDIR": str(temporary)}
    )
    proxy, proxy_port = stage.serve_proxy(port)
    lending = Lent(stage, custodian, enclave, port, f"http://127.0.0.1:{proxy_port}/v1")
    model = lending.model
    with lending.client() as client:
        asked: dict[str, Any] = {"model": model, "max_tokens": 40, "temperature": 0}
        said: Any = [
            {"role": "system", "content": f"You are {WORD}."},
            {"role": "user", "content": f"Why is the {WORD} singing?"},
        ]
        texts = [
            client.chat.completions.create(messages=said, **asked).choices[0].message.content,
            "".join(
                event.choices[0].delta.content or ""
                for event in client.chat.completions.create(messages=said, stream=True, **asked)
            ),
            client.completions.create(prompt=f"The {WORD} sings", **asked).choices[0].text,
        ]
        client.embeddings.create(model=model, input=WORD)
        for wrong in ({WORD: 1}, {"stop": [WORD] * 9}, {"response_format": {"type": WORD}}):
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(messages=said, extra_body=wrong, **asked)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(messages=said, **{**asked, "model": WORD})
        long: Any = [{"role": "user", "content": f"{WORD}: {STORY}"}]
        with client.chat.completions.create(
            messages=long, model=model, max_tokens=1500, stream=True
        ) as stream:
            while not (event := next(stream)).choices[0].delta.content:
                assert not event.choices[0].finish_reason
            assert stage.custodian("stop", "--reason", VERDICT).code == 0
            with pytest.raises(openai.APIError, match=VERDICT):
                list(stream)
    stage.wait_for(enclave, lambda: "enclave.wiped" in enclave.output())
    events = stage.custodian("events", "--limit", "10000").stdout.encode()
    proxy.kill()
    assert (enclave.terminate(), custodian.terminate()) == (0, 0)

    said_up = tap.said()
    tap.close()
    assert b'"type":"' in b"".join(said_up)  # it was read in the clear
    places = {f"to the custodian {index}": one for index, one in enumerate(said_up)}
    places["events"] = events
    for path in stage.folder.rglob("*"):
        if path.is_file():
            places[str(path)] = path.read_bytes()
    assert VERDICT.encode() in events  # what may be said is found
    assert any("ledger" in place for place in places)
    assert any("enclave-cache" in place for place in places)
    needles = {"the word": WORD.encode()}
    for index, text in enumerate(texts):
        assert text is not None
        assert len(text) > 40
        needles[f"answer {index}"] = text.strip()[:24].encode()
    for what, needle in list(needles.items()):
        for start in range(3):
            coded = base64.b64encode(b"\0" * start + needle)
            needles[f"{what} base64 {start}"] = coded[4 if start else 0 : -4]
        needles[f"{what} hex"] = needle.hex().encode()
        needles[f"{what} JSON"] = json.dumps(needle.decode()).encode()[1:-1]
    needles |= weights()
    found = [
        (what, where)
        for what, needle in needles.items()
        for where, body in places.items()
        if needle in body
    ]
    assert found == []


def weights() -> dict[str, bytes]:
    """Return the beginning of the model's file, and some runs of bytes out of its middle."""
    model = smollm2.gguf().read_bytes()
    at = [0, *(len(model) * part // 7 for part in range(1, 7))]
    runs = {f"weights at {start}": model[start : start + 48] for start in at}
    assert all(len(set(run)) > 8 for run in runs.values())  # none is mere padding
    return runs
