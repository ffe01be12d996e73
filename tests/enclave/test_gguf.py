"""A language model computes from sealed memory, and only we ask it, for each consumer alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.runtime import gguf
from aigovtool.enclave.runtime.base import Kind, Piece, Prompt, RuntimeOptions
from aigovtool.enclave.runtime.gguf import EMBEDDED_TOKENS, GgufModel, GgufRuntime
from aigovtool.enclave.runtime.llamacpp import BATCH_TOKENS
from aigovtool.enclave.runtime.memory_file import MemoryFile
from aigovtool.enclave.runtime.registry import runtime_for
from aigovtool.errors import (
    AIGovToolError,
    BadPromptError,
    ConfigurationError,
    MalformedError,
    UnavailableError,
)
from aigovtool.ids import ConsumerId
from aigovtool.sealing.manifest import ModelSignature
from aigovtool.sealing.memory import wipe
from tests import smollm2

from . import models

ALICE, BOB = ConsumerId("cons_alice"), ConsumerId("cons_bob")
CONTEXT = 1024
pytestmark = pytest.mark.xdist_group("gguf")  # one copy of the model, not one for each worker


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def load(manifest, data: bytes, options: RuntimeOptions) -> GgufModel:
    runtime = runtime_for(manifest, options)
    (file,) = manifest.files
    memory = runtime.allocate(file)
    memory[:] = data
    files = {file.name: memory.toreadonly()}

    def forget() -> None:
        wipe(memory)
        files.clear()
        memory.release()

    try:
        return runtime.load(files, forget)
    except BaseException:
        forget()
        raise


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory):
    path = smollm2.gguf()
    files = {"model.gguf": path.read_bytes()}
    sealed = models.sealed(
        tmp_path_factory.mktemp("sealed"),
        SigningKey.generate(),
        (files, ModelSignature()),
        format="gguf",
        entry="model.gguf",
        name="smollm2",
    )
    return sealed.verified.manifest


@pytest.fixture(scope="module")
def model(manifest) -> Iterator[GgufModel]:
    loaded = load(
        manifest,
        smollm2.gguf().read_bytes(),
        RuntimeOptions(slots=2, context=CONTEXT, intra_op_threads=1),
    )
    yield loaded
    loaded.close()


@pytest.fixture
def forgetful(model: GgufModel) -> GgufModel:
    """The model, which has kept nothing that another test asked."""
    model.shared_prefixes = False
    for number in range(model.slots):
        run(model, chat("forget"), 1, consumer=ConsumerId(f"cons_before{number}"))
    return model


def run(
    model: GgufModel,
    body: dict[str, Any],
    max_output: int = 8,
    *,
    kind: Kind = "chat",
    consumer: ConsumerId = ALICE,
    tell: Callable[[Piece], None] | None = None,
) -> tuple[list[Piece], int]:
    """Return the pieces of an answer, and how many tokens of the input were kept from before."""
    told: list[Piece] = []
    prompt = Prompt(kind, body, model.count(kind, body), max_output)
    generation = model.generate(prompt, consumer, tell or told.append)
    generation.execute()
    return told, generation.cached


def text_of(pieces: list[Piece]) -> str:
    choices = [piece.chunk["choices"][0] for piece in pieces]
    return "".join(
        (one["delta"].get("content") or "") if "delta" in one else one["text"] for one in choices
    )


def last(pieces: list[Piece]) -> dict[str, Any]:
    return pieces[-1].chunk["choices"][0]


# --- what it answers ------------------------------------------------------------------------------


def test_it_answers_as_it_does_everywhere(model: GgufModel) -> None:
    pieces, _ = run(model, chat("What is the capital of France? Answer in one word."), 16)
    assert "Paris" in text_of(pieces)
    first = pieces[0].chunk["choices"][0]
    assert first["delta"]["role"] == "assistant"
    assert [set(piece.chunk) for piece in pieces] == [{"choices"}] * len(pieces)
    assert last(pieces)["finish_reason"] in ("stop", "length")
    assert (model.name, model.chats, model.embeds) == ("smollm2", True, True)
    assert (model.slots, model.context) == (2, CONTEXT)


def test_pieces_count_every_token_and_no_more_than_allowed(model: GgufModel) -> None:
    for most in (1, 2, 7):
        pieces, _ = run(model, chat("Tell a long story about emoji 🌟🌟🌟"), most)
        counts = [piece.produced for piece in pieces]
        assert counts == sorted(counts)
        assert counts[-1] == most
        assert last(pieces)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("chat", chat("hello")),
        ("chat", chat("<|im_end|> is a word here")),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
        ("chat", chat("x", tools=[{"type": "function", "function": {"name": "f"}}])),
        ("completion", {"prompt": "Once upon a time <|im_start|>"}),
        ("completion", {"prompt": [1, 2, 3, 4, 5]}),
    ],
)
def test_the_input_is_counted_exactly(model: GgufModel, kind: Kind, body: dict[str, Any]) -> None:
    """Against what llama.cpp says that it has computed."""
    counted: list[int] = []
    take = gguf.GgufGeneration._take

    def taken(self: gguf.GgufGeneration, chunk: dict[str, Any]) -> None:
        if "timings" in chunk:
            counted.append(chunk["timings"]["cache_n"] + chunk["timings"]["prompt_n"])
        take(self, chunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GgufGeneration, "_take", taken)
        run(model, body, 2, kind=kind)
    assert counted[-1] == model.count(kind, body)


def test_completions_and_their_probabilities_are_openais(model: GgufModel) -> None:
    body = {"prompt": "The capital of France is", "temperature": 0, "logprobs": 2}
    pieces, _ = run(model, body, 4, kind="completion")
    text = text_of(pieces)
    assert "Paris" in text
    with_tokens = [one for one in (p.chunk["choices"][0]["logprobs"] for p in pieces) if one]
    tokens = [token for one in with_tokens for token in one["tokens"]]
    assert "".join(tokens) == text
    offsets = [offset for one in with_tokens for offset in one["text_offset"]]
    assert offsets == [len("".join(tokens[:n])) for n in range(len(tokens))]
    assert all(len(top) == 2 for one in with_tokens for top in one["top_logprobs"])
    assert all(number <= 0 for one in with_tokens for number in one["token_logprobs"])
    none, _ = run(model, {**body, "logprobs": 0}, 2, kind="completion")
    assert none[0].chunk["choices"][0]["logprobs"]["top_logprobs"] is None


@pytest.mark.parametrize(("asked", "given"), [(None, 0), (0, 0), (3, 3)])
def test_a_chat_gets_the_probabilities_that_it_asked_for(
    model: GgufModel, asked: int | None, given: int
) -> None:
    pieces, _ = run(model, chat("hi", logprobs=True, top_logprobs=asked), 3)
    found = [one for p in pieces if (one := p.chunk["choices"][0]["logprobs"]) is not None]
    assert len(found) == 3
    for one in found:
        (token,) = one["content"]
        assert set(token) == {"token", "bytes", "logprob", "top_logprobs"}
        assert len(token["top_logprobs"]) == given
    plain, _ = run(model, chat("hi", top_logprobs=3), 3)
    assert all(piece.chunk["choices"][0]["logprobs"] is None for piece in plain)


def test_a_schema_a_stop_and_a_seed_are_kept(model: GgufModel) -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    pieces, _ = run(model, chat("Give me a number.", response_format=form), 48)
    assert isinstance(json.loads(text_of(pieces))["x"], int)
    plain, _ = run(model, {"prompt": "1 2 3 4 5 6", "temperature": 0}, 12, kind="completion")
    body = {"prompt": "1 2 3 4 5 6", "temperature": 0, "stop": ["9"]}
    stopped, _ = run(model, body, 12, kind="completion")
    assert "9" in text_of(plain)
    assert text_of(stopped) == text_of(plain).partition("9")[0]
    assert last(stopped)["finish_reason"] == "stop"
    seeded = [
        text_of(run(model, chat("Tell a joke", temperature=1.5, seed=seed), 12)[0])
        for seed in (1, 1, 2)
    ]
    assert seeded[0] == seeded[1] != seeded[2]


def test_a_tool_is_called(model: GgufModel) -> None:
    """As far as llama.cpp gives them: this model's template knows none, so words may come."""
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    pieces, _ = run(model, chat("call f", tools=tools, tool_choice="required"), 24)
    assert last(pieces)["finish_reason"] in ("stop", "length", "tool_calls")


@pytest.mark.parametrize(
    "more",
    [
        {"n_predict": 50},
        {"n": 2},
        {"max_tokens": 50},
        {"max_completion_tokens": 50},
        {"ignore_eos": True},
        {"stream": False},
        {"grammar": 'root ::= "canary"'},
        {"cache_prompt": True, "id_slot": 0},
        {"lora": [{"id": 0, "scale": 1}]},
        {"n_probs": 5},
        {"return_tokens": True, "response_fields": ["prompt"]},
        {"chat_template_kwargs": {"x": 1}},
        {"timings_per_token": False},
    ],
)
def test_nothing_but_openais_parameters_reaches_the_model(
    model: GgufModel, more: dict[str, Any]
) -> None:
    strangers = [ConsumerId("cons_" + "_".join((*more, str(number)))) for number in range(2)]
    plain, _ = run(model, chat("Say yes."), 3, consumer=strangers[0])
    asked, cached = run(model, chat("Say yes.", **more), 3, consumer=strangers[1])
    assert [p.chunk for p in asked] == [p.chunk for p in plain]
    assert cached == 0


def test_an_answer_ends_at_the_end_of_the_context(model: GgufModel) -> None:
    body = {"prompt": "word " * (CONTEXT - 40), "temperature": 0}
    tokens = model.count("completion", body)
    pieces, _ = run(model, body, CONTEXT - tokens, kind="completion")
    assert pieces[-1].produced <= CONTEXT - tokens


# --- what it refuses ------------------------------------------------------------------------------

CANARY = "canary-dc41a2"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("completion", {}),
        ("completion", {"prompt": []}),
        ("completion", {"prompt": ["one", "two"]}),
        ("completion", {"prompt": [[1], [2]]}),
        ("completion", {"prompt": {"prompt_string": CANARY}}),
        ("chat", {"messages": CANARY}),
        ("chat", {"messages": [{"role": "user"}]}),
        ("chat", {"messages": [{"role": "user", "content": [{"type": CANARY}]}]}),
        ("chat", chat(CANARY, tools=[{"type": CANARY}])),
        ("chat", chat(CANARY, response_format={"type": CANARY})),
    ],
)
def test_what_cannot_be_read_is_refused_when_it_is_counted(
    model: GgufModel, kind: Kind, body: dict[str, Any]
) -> None:
    with pytest.raises(BadPromptError) as caught:
        model.count(kind, body)
    assert CANARY not in str(caught.value)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("completion", {"prompt": [1, 2, 10**6]}),
        ("completion", {"prompt": [-1]}),
        ("completion", {"prompt": f"{CANARY} " * CONTEXT}),
        ("chat", chat(f"{CANARY} " * CONTEXT)),
        *(
            (
                "chat",
                chat(
                    CANARY,
                    response_format={
                        "type": "json_schema",
                        "json_schema": {"name": CANARY, "schema": schema},
                    },
                ),
            )
            for schema in (
                {"type": CANARY},
                {"$ref": f"#/{CANARY}"},
                {"$ref": f"https://example.com/{CANARY}"},
                {"type": "string", "minLength": 10**8},
                {"properties": {CANARY: {"type": "array", "minItems": 10**6}}},
            )
        ),
    ],
)
def test_what_cannot_be_run_is_refused_without_its_words(
    model: GgufModel, kind: Kind, body: dict[str, Any]
) -> None:
    told: list[Piece] = []
    generation = model.generate(Prompt(kind, body, 9, 4), ALICE, told.append)
    with pytest.raises(BadPromptError) as caught:
        generation.execute()
    assert CANARY not in str(caught.value)
    assert told == []
    assert run(model, chat("still there?"), 2)[0]


def test_a_long_input_is_told_by_its_code(model: GgufModel) -> None:
    body = {"prompt": "x " * (2 * CONTEXT)}
    tokens = model.count("completion", body)
    with pytest.raises(BadPromptError) as caught:
        model.generate(Prompt("completion", body, tokens, 4), ALICE, lambda _: None).execute()
    (reason,) = caught.value.reasons
    assert (reason.code, reason.came) == ("context_length_exceeded", str(tokens))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("levels", [50, 400])
def test_a_deep_schema_ends_neither_the_enclave_nor_the_answers_of_others(
    model: GgufModel, levels: int
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": deep(levels)}}
    with contextlib.suppress(AIGovToolError):
        run(model, chat("x", response_format=form), 2)
    assert run(model, chat("still there?"), 2)[0]


def test_nothing_at_all_cannot_be_asked_for(model: GgufModel) -> None:
    """llama.cpp would produce a token."""
    with pytest.raises(BadPromptError):
        model.generate(Prompt("chat", chat("x"), 9, 0), ALICE, lambda _: None).execute()


# --- the end of an answer -------------------------------------------------------------------------


def test_an_answer_is_ended_between_its_tokens(model: GgufModel) -> None:
    told: list[Piece] = []
    generation = model.generate(Prompt("chat", chat("Tell a story"), 40, 500), ALICE, told.append)
    tell = told.append

    def third(piece: Piece) -> None:
        tell(piece)
        if len(told) == 3:
            generation.terminate()

    generation._tell = third
    with pytest.raises(UnavailableError):
        generation.execute()
    assert len(told) == 3
    assert run(model, chat("still there?"), 2)[0]


def test_an_answer_is_ended_while_its_input_is_read(model: GgufModel) -> None:
    """What is being computed is finished, no more."""
    told: list[Piece] = []
    seen: list[int] = []
    body = {"prompt": "word " * (CONTEXT - 100)}
    stranger = ConsumerId("cons_stranger")  # for whom nothing is kept
    generation = model.generate(Prompt("completion", body, 0, 5), stranger, told.append)
    take = generation._take

    def taken(chunk: dict[str, Any]) -> None:
        seen.append(chunk["prompt_progress"]["processed"])
        generation.terminate()
        take(chunk)

    generation._take = taken  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        generation.execute()
    assert told == []
    assert len(seen) == 1
    assert seen[0] in (0, BATCH_TOKENS)


def test_an_answer_that_was_ended_beforehand_is_never_begun(model: GgufModel) -> None:
    told: list[Piece] = []
    generation = model.generate(Prompt("chat", chat("x"), 9, 5), ALICE, told.append)
    generation.terminate()
    with pytest.raises(UnavailableError):
        generation.execute()
    assert told == []


def test_terminating_what_is_over_is_harmless(model: GgufModel) -> None:
    told: list[Piece] = []
    generation = model.generate(Prompt("chat", chat("x"), 9, 2), ALICE, told.append)
    generation.execute()
    generation.terminate()
    assert told[-1].produced == 2


def test_what_is_raised_when_a_piece_is_told_ends_the_answer(model: GgufModel) -> None:
    def full(_: Piece) -> None:
        raise UnavailableError("the budget is used up")

    with pytest.raises(UnavailableError, match="used up"):
        run(model, chat("Tell a story"), 500, tell=full)
    assert run(model, chat("still there?"), 2)[0]


def test_more_answers_than_slots_wait_for_each_other_and_can_be_ended(model: GgufModel) -> None:
    reached = threading.Barrier(model.slots + 1, timeout=60)
    go = threading.Event()

    def holding() -> Callable[[Piece], None]:
        held = threading.Event()

        def hold(_: Piece) -> None:
            if not held.is_set():
                held.set()
                reached.wait()
                assert go.wait(60)

        return hold

    prompt = Prompt("chat", chat("Tell a story"), 40, 3)
    busy = [
        threading.Thread(target=model.generate(prompt, ALICE, holding()).execute)
        for _ in range(model.slots)
    ]
    for thread in busy:
        thread.start()
    reached.wait()
    errors: list[Exception] = []
    told: list[Piece] = []
    ended = model.generate(prompt, BOB, told.append)
    served = model.generate(prompt, BOB, told.append)

    def execute() -> None:
        try:
            ended.execute()
        except UnavailableError as error:
            errors.append(error)

    waiting = [threading.Thread(target=execute), threading.Thread(target=served.execute)]
    for thread in waiting:
        thread.start()
    ended.terminate()
    waiting[0].join(60)
    assert len(errors) == 1
    assert told == []
    go.set()
    for thread in (*busy, waiting[1]):
        thread.join(60)
        assert not thread.is_alive()
    assert told[-1].produced == 3


# --- the prompt cache -----------------------------------------------------------------------------

LONG = "Remember this: the quick brown fox jumps over the lazy dog. " * 6


def test_a_consumers_kept_prompt_serves_that_consumer_and_no_other(
    forgetful: GgufModel,
) -> None:
    model = forgetful
    tokens = model.count("chat", chat(LONG))
    _, cached = run(model, chat(LONG))
    assert cached == 0
    _, cached = run(model, chat(LONG))
    assert cached == tokens - 1  # the last one is computed, to go on from
    _, cached = run(model, chat(LONG), consumer=BOB)
    assert cached == 0
    _, cached = run(model, chat(LONG))  # the other one had another slot
    assert cached == tokens - 1
    for _ in range(2):  # both slots are somebody else's now
        run(model, chat(LONG), consumer=ConsumerId("cons_carol"))
        run(model, chat("short"), consumer=BOB)
    _, cached = run(model, chat(LONG))
    assert cached == 0


def test_a_query_that_fails_inherits_nothing_of_the_one_before_it(forgetful: GgufModel) -> None:
    model = forgetful
    for number in range(model.slots):
        run(model, chat(LONG), 1, consumer=ConsumerId(f"cons_{number}"))
    schema = {"type": "string", "minLength": 10**8}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for _ in range(model.slots):
        with pytest.raises(BadPromptError):
            run(model, chat(LONG, response_format=form), 1, consumer=BOB)
    for _ in range(model.slots):
        ended = model.generate(Prompt("chat", chat(LONG), 9, 1), BOB, lambda _: None)
        ended._take = lambda _, ended=ended: ended.terminate()
        with pytest.raises(UnavailableError):
            ended.execute()
    _, cached = run(model, chat(LONG), 1, consumer=BOB)
    assert cached == 0


def test_a_loan_may_share_kept_prompts(forgetful: GgufModel) -> None:
    model = forgetful
    model.shared_prefixes = True
    run(model, chat(LONG))
    _, cached = run(model, chat(LONG), consumer=BOB)
    assert cached == model.count("chat", chat(LONG)) - 1
    model.shared_prefixes = False
    _, cached = run(model, chat(LONG), consumer=ALICE)
    assert cached == 0


def test_two_conversations_of_one_consumer_keep_a_slot_each(forgetful: GgufModel) -> None:
    model = forgetful
    other = "Another conversation about cooking. " * 20
    run(model, chat(LONG))
    run(model, chat(other))
    assert run(model, chat(LONG))[1] > 100
    assert run(model, chat(other))[1] > 100


# --- embeddings -----------------------------------------------------------------------------------


def test_texts_that_mean_alike_are_near_each_other(model: GgufModel) -> None:
    texts = ["A cat sat on the mat.", "A kitten sits on a rug.", "Stock markets fell in Tokyo."]
    cat, kitten, stocks = model.embed(texts)
    assert len(cat) == 576
    assert sum(x * x for x in cat) == pytest.approx(1, abs=1e-3)
    near = sum(a * b for a, b in zip(cat, kitten, strict=True))
    far = sum(a * b for a, b in zip(cat, stocks, strict=True))
    assert near > far
    run(model, chat(LONG))  # nothing of another query is in it
    (alone,) = model.embed([texts[0]])
    assert alone == pytest.approx(cat, abs=1e-3)
    assert model.count_embedded([*texts, "hello world"])[-1] == 2


def test_a_text_that_is_too_long_to_embed_is_refused(model: GgufModel) -> None:
    with pytest.raises(BadPromptError) as caught:
        model.embed([f"{CANARY} " * EMBEDDED_TOKENS])
    assert CANARY not in str(caught.value)
    assert caught.value.param == "input"


# --- nobody else asks it --------------------------------------------------------------------------


def sockets_of_this_process() -> set[str]:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    found = set()
    for link in links:
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    return found


def listening(table: str, *, state: int, inode: int, listens: str) -> set[str]:
    rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[inode] for row in rows if row[state] == listens}


def test_nothing_listens_but_a_socket_without_a_name(model: GgufModel) -> None:
    mine = sockets_of_this_process()
    for table in ("tcp", "tcp6"):
        if Path(f"/proc/net/{table}").exists():
            assert mine & listening(table, state=3, inode=9, listens="0A") == set()
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    named = [row[7] for row in rows if row[6] in mine and len(row) > 7]
    assert named
    for name in named:
        assert not Path(name).exists()
        with (
            socket.socket(socket.AF_UNIX) as other,
            pytest.raises(OSError, match=r"No such|refused|Not a directory"),
        ):
            other.connect(name)


def test_whoever_finds_the_socket_needs_the_key(model: GgufModel) -> None:
    engine = model._engine
    key, engine._key = engine._key, "guessed"
    try:
        for path, body in [
            ("/v1/chat/completions", {**chat("x"), "max_tokens": 1}),
            ("/completion", {"prompt": "x", "n_predict": 1}),
            ("/tokenize", {"content": "x"}),
            ("/apply-template", chat("x")),
            ("/props", None),
            ("/v1/models", None),
        ]:
            status, _ = engine.ask(path, body)
            assert status == 401, path
        for path in ("/slots", "/metrics"):
            assert engine.ask(path)[0] != 200
    finally:
        engine._key = key
    assert engine.ask("/props")[0] == 200


# --- memory ---------------------------------------------------------------------------------------


def test_a_sealed_memory_file_can_be_overwritten_by_us_and_by_nobody_else() -> None:
    memory = MemoryFile(8192)
    assert bytes(memory.view) == bytes(8192)
    memory.view[:4] = b"GGUF"
    memory.seal()
    assert memory.holds(b"GGUF", within=100)
    assert not memory.holds(b"GGUF", within=3)
    fd = os.open(memory.path, os.O_RDWR)
    try:
        import mmap

        with pytest.raises(PermissionError):
            os.write(fd, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 1)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 8192)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with mmap.mmap(fd, 8192, prot=mmap.PROT_READ) as reader:
            assert reader[:4] == b"GGUF"
            wipe(memory.view)
            assert reader[:] == bytes(8192)
    finally:
        os.close(fd)
    memory.close()
    assert not Path(memory.path).exists()


def test_memory_that_there_is_not_is_refused() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UnavailableError, match="no memory"):
        MemoryFile(1 << 60)
    assert len(os.listdir("/proc/self/fd")) == before


def mapped() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd" in line]


def test_a_model_that_is_closed_is_overwritten_and_unmapped(manifest, tmp_path: Path) -> None:
    before = mapped()
    loaded = load(
        manifest,
        smollm2.gguf().read_bytes(),
        RuntimeOptions(slots=1, context=256, intra_op_threads=1),
    )
    loaded.embed(["x"])
    witness = os.open(loaded._memory.path, os.O_RDONLY)
    try:
        assert os.pread(witness, 4, 0) == b"GGUF"
        assert len(mapped()) > len(before)
        engines = [loaded._engine, loaded._embedding]
        loaded.close()
        size = manifest.plaintext_size
        for at in range(0, size, 1 << 20):
            block = os.pread(witness, 1 << 20, at)
            assert not any(block)
    finally:
        os.close(witness)
    assert mapped() == before
    for engine in engines:
        assert engine is not None
        with pytest.raises(UnavailableError):
            engine.ask("/props")
    with pytest.raises(UnavailableError):
        loaded.count("chat", chat("x"))
    with pytest.raises(UnavailableError):
        run_uncounted(loaded)


def run_uncounted(model: GgufModel) -> None:
    model.generate(Prompt("chat", chat("x"), 9, 1), ALICE, lambda _: None).execute()


@pytest.mark.parametrize("damage", [b"not a model", b"GGUF" + bytes(60)])
def test_what_is_no_model_is_refused_and_leaves_nothing(
    tmp_path: Path, damage: bytes, key: SigningKey
) -> None:
    before = len(os.listdir("/proc/self/fd")), mapped()
    files = ({"model.gguf": damage}, ModelSignature())
    sealed = models.sealed(tmp_path, key, files, format="gguf", entry="model.gguf")
    with pytest.raises(MalformedError, match=r"llama\.cpp cannot load"):
        load(sealed.verified.manifest, damage, RuntimeOptions())
    assert (len(os.listdir("/proc/self/fd")), mapped()) == before


def test_without_the_extra_it_is_said_what_to_install(
    manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="not installed") as caught:
        GgufRuntime(manifest, RuntimeOptions())
    assert "pip install 'aigovtool[llm]'" in str(caught.value)
