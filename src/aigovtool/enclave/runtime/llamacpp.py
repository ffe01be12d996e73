"""
llama.cpp in this process, by the one class that `xllamacpp` has for it: a server.

Rule 1: nobody connects to it. It serves on a Unix socket in a folder of its own, whose name is gone
        before the first query; the descriptor that still leads to it is this process's, and a
        random key is asked for besides. It is how tokens are counted, which nothing else does.
Rule 2: it writes nothing: no log, no state, no cache of prompts beside its slots.
Rule 3: a failure is told by its kind. llama.cpp's own words quote the request.
Rule 4: it is destroyed when nothing uses it any more, and `close` waits for that.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from aigovtool.enclave.runtime.base import Kind
from aigovtool.errors import BadPromptError, MalformedError, UnavailableError

BATCH_TOKENS = 128  # of an input that are computed at once: a stop waits for them
_SOCKET = "s.sock"  # by its ending the server knows what it is
_ANSWER_S = 60.0  # counting takes some milliseconds, and may have to wait for a core
_HTTP_THREADS = 2

Told = Callable[[bytes], bool]
"""Takes a chunk of a stream; True ends it."""


class Engine:
    """
    One model, loaded.

    Args:
        path: of its GGUF file.
        slots: queries computed at one time.
        context: tokens of each.
        threads: that compute.
        repacked: keep a second copy of quantised weights, as the kernels read them.
        pooled: give embeddings, and nothing else; the mean of all tokens where the model does not
            say how. None for a model that produces.

    Raises:
        MalformedError: llama.cpp cannot load it.
    """

    def __init__(
        self,
        path: str,
        *,
        slots: int,
        context: int,
        threads: int,
        repacked: bool,
        pooled: bool | None = None,
    ) -> None:
        import xllamacpp  # noqa: PLC0415 - needs an extra

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_parallel = slots
        params.n_ctx = slots * context
        params.kv_unified = False  # each slot has its own
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.no_extra_bufts = not repacked
        params.fit_params = False  # the context is the one that was asked for
        params.warmup = False
        if pooled is not None:
            params.embedding = True
            params.n_batch = params.n_ubatch = context  # a text is pooled in one batch
            if pooled:
                params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # Rule 2
        params.verbosity = -1
        params.cache_ram_mib = 0
        params.cache_idle_slots = False
        params.n_ctx_checkpoints = 0
        params.slot_prompt_similarity = 0.0  # we choose the slot
        # Rule 1
        params.ui = False
        params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
        params.n_threads_http = _HTTP_THREADS
        self._key = secrets.token_hex(32)
        params.api_keys = [self._key]
        self._users = 0
        self._changed = threading.Condition()
        self._server: Any = None
        with _hidden_folder() as folder:
            params.hostnames = [f"/proc/self/fd/{folder}/{_SOCKET}"]
            try:
                self._server = xllamacpp.Server(params)
                self._door: int | None = os.open(_SOCKET, os.O_PATH, dir_fd=folder)
            except Exception as error:  # noqa: BLE001 - whatever the binding raises (Rule 3)
                self._server = None
                raise MalformedError(
                    "llama.cpp cannot load the model",
                    code="model.load",
                    came=type(error).__name__,
                    mend="seal a GGUF file that this version of xllamacpp loads",
                ) from None

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """
        Return the server's status and JSON answer to a POST of *body*, or to a GET.

        Raises:
            UnavailableError: it does not answer, or is closed.
        """
        with self._in_use():
            connection = http.client.HTTPConnection("llama.cpp", timeout=_ANSWER_S)
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.sock.settimeout(_ANSWER_S)
                connection.sock.connect(f"/proc/self/fd/{self._door}")
                connection.request(
                    "GET" if body is None else "POST",
                    path,
                    None if body is None else msgspec.json.encode(body),
                    {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
                )
                answer = connection.getresponse()
                return answer.status, msgspec.json.decode(answer.read())
            except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
                raise UnavailableError(
                    "llama.cpp does not answer", code="model.answer", came=type(error).__name__
                ) from None
            finally:
                connection.close()

    def run(self, kind: Kind, body: Any, told: Told) -> None:
        """
        Run a query and tell its chunks, on this thread, until *told* says True or it is over.

        Raises:
            BadPromptError: it cannot be run.
            UnavailableError: it is closed.
        """
        with self._in_use() as server:
            handle = server.handle_chat_completions if kind == "chat" else server.handle_completions
            try:
                handle(msgspec.json.encode(body), told)
            except (RuntimeError, ValueError):
                raise unreadable() from None

    def embeddings(self, texts: Sequence[str]) -> list[list[float]]:
        """
        Return the embedding of each text.

        Raises:
            BadPromptError: a text cannot be read, or is too long.
            UnavailableError: it is closed.
        """
        with self._in_use() as server:
            try:
                answer = server.handle_embeddings({"input": list(texts)})
            except (RuntimeError, ValueError):
                raise unreadable("input") from None
        if "error" in answer:
            raise unreadable("input")
        return [one["embedding"] for one in sorted(answer["data"], key=lambda one: one["index"])]

    def close(self) -> None:
        """Destroy it when it is not used any more; nothing of the model is mapped then."""
        with self._changed:
            server, self._server = self._server, None
            self._changed.wait_for(lambda: self._users == 0)
            del server
            if self._door is not None:
                os.close(self._door)
                self._door = None

    @contextmanager
    def _in_use(self) -> Iterator[Any]:
        with self._changed:
            server = self._server
            if server is None:
                raise UnavailableError("the model is not loaded")
            self._users += 1
        try:
            yield server
        finally:
            del server
            with self._changed:
                self._users -= 1
                self._changed.notify_all()


def unreadable(param: str | None = None) -> BadPromptError:
    """Say that llama.cpp, or the model's template, refused a request."""
    return BadPromptError(
        "the model cannot take this request",
        code="bad_prompt.model",
        mend="see that it has what the model's template, tools and schema allow",
        param=param,
    )


@contextmanager
def _hidden_folder() -> Iterator[int]:
    """Lend a descriptor of a folder that only we may enter, and that is gone afterwards."""
    path = tempfile.mkdtemp()  # of mode 0700
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        with contextlib.suppress(FileNotFoundError):  # it never got so far
            os.unlink(_SOCKET, dir_fd=folder)
        os.close(folder)
        os.rmdir(path)
