"""Every number that bounds the enclave, by name; all can be set on the command line."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from pathlib import Path

import msgspec

from aigovtool.enclave.runtime.base import DEFAULT_CONTEXT, DEFAULT_SLOTS, RuntimeOptions
from aigovtool.errors import ConfigurationError

DEFAULT_LISTEN = "0.0.0.0:9924"  # consumers connect from elsewhere; TLS and their keys guard it

MIN_TOKEN_CHARACTERS = 20
DEFAULT_COMPUTE_THREADS = len(os.sched_getaffinity(0))  # cores that we may use
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
DEFAULT_PACKED_BYTES = 128 << 20  # so the enclave's memory stays below 1.3 models and 200 MB


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What one consumer, or all together, may ask of the enclave. Times are seconds.

    Args:
        max_body_bytes: of a query.
        max_bodies_bytes: of all queries that are in memory at one time; one consumer gets three
            quarters of it, and two bodies' worth in any case.
        max_tensors: inputs or outputs named in a query.
        body_time_s: for a query's body to arrive.
        query_time_s: for its computation.
        generation_time_s: for the answer of a language model, from its first token to its last.
        max_queue: queries that are being computed or wait for a compute thread; one consumer gets
            three quarters of it.
        max_waiting: queries that wait for credits.
        max_waiting_each: of one consumer.
        lease_wait_s: how long a query waits for a lease of credits that exist.
        max_patience_s: how long ``Prefer: wait`` can make a query wait for credits that do not.
        attestations_per_s: fresh evidence that is made for consumers; one address gets half of it.
        attestation_burst: so many at once.
        attestation_wait_s: how long a consumer waits for evidence and a live lease.
        max_connections: of consumers.
        idle_s: an unused connection is closed after so long.
        drain_s: how long queries in flight may go on when the server is told to end.
        goodbye_s: how long after that the last settlements and the proof may take.
        replay_s: how long an answer is kept for a retry with the same ``Idempotency-Key``.
        max_replay_bytes: of all kept answers together.
    """

    max_body_bytes: int = 256 << 20
    max_bodies_bytes: int = 2 << 30
    max_tensors: int = 64
    body_time_s: float = 60.0
    query_time_s: float = 120.0
    generation_time_s: float = 1800.0
    max_queue: int = 1024
    max_waiting: int = 4096
    max_waiting_each: int = 2048
    lease_wait_s: float = 3.0
    max_patience_s: float = 600.0
    attestations_per_s: float = 20.0
    attestation_burst: int = 40
    attestation_wait_s: float = 10.0
    max_connections: int = 4096
    idle_s: float = 75.0
    drain_s: float = 10.0
    goodbye_s: float = 10.0
    replay_s: float = 600.0
    max_replay_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"the limit {name} must be above zero", came=str(getattr(self, name))
                )


class EnclaveConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How one enclave server runs.

    Args:
        listen: ``host:port`` for consumers; port 0 lets the machine choose.
        grpc_listen: ``host:port`` for consumers that speak gRPC, or None; the extra ``grpc``.
        metrics_listen: ``host:port`` for Prometheus, or None.
        metrics_token: file with the token that Prometheus bears; needed off loopback.
        cache: folder for ciphertext of models, or None to fetch it at every start.
        compute_threads: queries computed at once.
        intra_op_threads: threads that one computation may use, 0 to choose by model and cores.
        packed_bytes: models of at most this size get a second copy of their weights, packed as the
            runtime's kernels read them; larger ones are computed from where they were decrypted.
        slots: queries that a language model computes at one time.
        context: tokens that input and output of one of them may have together.
        max_model_bytes: of the memory that all models take together (`model_room`), None for what
            `default_model_bytes` says.
        fetch_endorsements: ask the TEE's vendor for what it says of this platform; kinds that bring
            everything, the simulated one too, ask nobody.
        pccs: address of a PCCS to ask instead of Intel, or None.
        endorsements_cache: folder for what vendors answer, or None to ask at every start.
    """

    listen: str = DEFAULT_LISTEN
    grpc_listen: str | None = None
    metrics_listen: str | None = None
    metrics_token: Path | None = None
    cache: Path | None = None
    compute_threads: int = DEFAULT_COMPUTE_THREADS
    intra_op_threads: int = 0
    packed_bytes: int = DEFAULT_PACKED_BYTES
    slots: int = DEFAULT_SLOTS
    context: int = DEFAULT_CONTEXT
    max_model_bytes: int | None = None
    fetch_endorsements: bool = True
    pccs: str | None = None
    endorsements_cache: Path | None = None
    limits: Limits = Limits()

    def address(self) -> tuple[str, int]:
        """Return host and port of `listen`; raises ConfigurationError."""
        return read_address(self.listen)

    def runtime_options(self) -> RuntimeOptions:
        """Return what concerns runtimes."""
        return RuntimeOptions(
            intra_op_threads=self.intra_op_threads,
            packed_bytes=self.packed_bytes,
            slots=self.slots,
            context=self.context,
        )


def default_model_bytes() -> int:
    """Return four fifths of the memory that this machine, or its control group, has."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no control group, or "max"
        found = min(found, int(_CGROUP_LIMIT.read_text()))
    return found * 4 // 5


def read_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT`` or ``[IPV6]:PORT``; raises ConfigurationError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigurationError(
            "not an address to listen on", expected="HOST:PORT", came=repr(text)
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach *host*; a name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path) -> str:
    """Read a token of one line; raises ConfigurationError."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not token.isascii() or len(token) < MIN_TOKEN_CHARACTERS or not token.isprintable():
        raise ConfigurationError(
            f"no token can be read from {path}",
            expected=f"one line of {MIN_TOKEN_CHARACTERS} or more ASCII characters",
            mend=f"head -c 32 /dev/urandom | base64 > {path}",
        )
    return token
