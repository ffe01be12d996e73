"""
The enclave's HTTP API for one loan as an ASGI application: which path is answered by what.

No framework: routing on the hot path is a prefix and a split. Everything but health and attestation
needs a consumer key, and every refusal is a problem document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from aigovtool import __version__
from aigovtool.clock import Clock
from aigovtool.enclave.api.attest import Attest, Witness
from aigovtool.enclave.api.cashier import Cashier
from aigovtool.enclave.api.coding import coded_reply
from aigovtool.enclave.api.completions import Completions
from aigovtool.enclave.api.embeddings import Embeddings
from aigovtool.enclave.api.http import (
    BodyRoom,
    ClientGoneError,
    Receive,
    Reply,
    Request,
    Scope,
    Send,
    StreamedReply,
    fault_reply,
    json_reply,
    problem_reply,
)
from aigovtool.enclave.api.infer import Infer, check_model
from aigovtool.enclave.api.text import TextDoor
from aigovtool.enclave.config import Limits
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.lifecycle import State
from aigovtool.enclave.metrics import Tally
from aigovtool.enclave.runtime.base import Model
from aigovtool.enclave.session import Session
from aigovtool.errors import AIGovToolError, NotFoundError, RefusedError
from aigovtool.ids import ConsumerId
from aigovtool.telemetry import traces
from aigovtool.wire.budget import MAX_WAITING_SHOWN, BudgetView, WaitingQuery, WaitingView
from aigovtool.wire.codec import decode
from aigovtool.wire.headers import ATTESTATION_PATH, BUDGET_PATH, WAITING_PATH
from aigovtool.wire.oip import (
    IndexEntry,
    IndexRequest,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)

SERVER_NAME = "aigovtool-enclave"
_MODELS = "/v2/models/"
_REPOSITORY = "/v2/repository/models/"  # …/NAME/load and …/unload
MAX_INDEX_REQUEST_BYTES = 4096
_INFER = "/infer"
_TEXT_MODELS = "/v1/models/"
_TEXT_QUERIES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
LOOK_AGAIN_S = 2.0  # who waits may look at its place so often
LOOKS_PER_S = 100  # and all together about so often
_METHOD_NOT_ALLOWED = 405
_ACTIVE = "active"  # the loan's state, in the words of the custodian
_LOAN_STATES = {
    State.SERVING: _ACTIVE,
    State.EVICTED: _ACTIVE,
    State.STOPPED: "stopped",
    State.CLOSED: "closed",
    State.UNREACHABLE: "unreachable",
}

Handler = Callable[[Request], Awaitable[Reply | StreamedReply]]


class Api:
    """
    The ASGI application for one loan.

    Args:
        witness: makes evidence, for the consumers of all loans.
        room: for the bodies of all loans' queries.
        tally: of all loans' queries.
    """

    def __init__(
        self,
        *,
        enclave: Enclave,
        witness: Witness,
        room: BodyRoom,
        limits: Limits,
        clock: Clock,
        tally: Tally,
    ) -> None:
        self._enclave = enclave
        self._tally = tally
        self._clock = clock
        self._body_time_s = limits.body_time_s
        self._infer = Infer(enclave, room, limits, clock)
        cashier = Cashier(enclave, limits, clock)
        door = TextDoor(enclave, cashier, room, limits, clock)
        completions = Completions(enclave, door, cashier, limits, clock)
        self._embeddings = Embeddings(enclave, door, cashier, limits, clock)
        self._routes: dict[str, dict[str, Handler]] = {
            "/v2": {"GET": self._server},
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
            "/v2/repository/index": {"GET": self._index, "POST": self._index},
            "/v1/chat/completions": {"POST": completions.chat},
            "/v1/completions": {"POST": completions.completion},
            "/v1/embeddings": {"POST": self._embeddings},
            "/v1/models": {"GET": self._embeddings.models},
            BUDGET_PATH: {"GET": self._budget},
            WAITING_PATH: {"GET": self._waiting},
            ATTESTATION_PATH: {"GET": Attest(enclave, witness, clock)},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        is_query = request.path.endswith(_INFER) or request.path in _TEXT_QUERIES
        begin_s = self._clock.monotonic_s()
        try:
            follow = self._followed if is_query and traces.on() else self._reply
            reply = await follow(request)
        except ClientGoneError:
            self._tally.gone += is_query
            return
        except AIGovToolError as error:
            reply = problem_reply(error)
        except Exception as error:  # noqa: BLE001 - internals stop at this door
            reply = fault_reply(error)
        if is_query:
            self._tally.answered(reply.status, self._clock.monotonic_s() - begin_s)
        if request.has_unread_body and isinstance(reply, Reply):
            await reply.send_and_close(send, request)
        else:
            await reply.send(send)

    async def _followed(self, request: Request) -> Reply | StreamedReply:
        """Answer a query within a span, of its consumer's trace if it names one."""
        parent = request.headers.get(b"traceparent", b"").decode("latin-1")
        with traces.span("infer", traceparent=parent) as set_number:
            reply = await self._reply(request)
            set_number("http.response.status_code", reply.status)
            return reply

    async def _reply(self, request: Request) -> Reply | StreamedReply:
        path = request.path
        if path.startswith(_MODELS):
            return await self._model_path(request, path[len(_MODELS) :].split("/"))
        if path.startswith(_REPOSITORY):
            self._known(request)
            raise RefusedError(
                "consumers load and unload no models: the loan decides what is served",
                code="repository.refused",
            )
        if path.startswith(_TEXT_MODELS) and request.method == "GET":
            return await self._embeddings.models(request, path[len(_TEXT_MODELS) :])
        methods = self._routes.get(path if path == "/" else path.rstrip("/"))
        if methods is None:
            raise NotFoundError("no such path here")
        handler = methods.get(request.method)
        return _not_allowed(methods) if handler is None else await handler(request)

    async def _model_path(self, request: Request, parts: list[str]) -> Reply:
        """Answer ``NAME[/versions/VERSION][/infer|/ready]``."""
        name, version, rest = parts[0], None, parts[1:]
        if not name:
            raise NotFoundError("no such path here")
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        match rest:
            case ["infer"]:
                if request.method != "POST":
                    return _not_allowed(["POST"])
                return await coded_reply(request, await self._infer(request, name, version))
            case [] | ["ready"]:
                if request.method != "GET":
                    return _not_allowed(["GET"])
                session, _ = self._known(request)
                check_model(session, name, version)
                _, model = self._enclave.serving()
                return json_reply(ModelReady(name=name, ready=True) if rest else _metadata(model))
        raise NotFoundError("no such path here")

    async def _live(self, _: Request) -> Reply:
        return json_reply(ServerLive(live=True))

    async def _ready(self, _: Request) -> Reply:
        self._enclave.serving()
        return json_reply(ServerReady(ready=True))

    async def _server(self, request: Request) -> Reply:
        self._known(request)
        return json_reply(ServerMetadata(name=SERVER_NAME, version=__version__))

    async def _index(self, request: Request) -> Reply:
        session, _ = self._known(request)
        body = await request.body(
            max_bytes=MAX_INDEX_REQUEST_BYTES,
            time_s=self._body_time_s,
            room=BodyRoom(MAX_INDEX_REQUEST_BYTES),
        )
        only_ready = bool(body) and decode(body, IndexRequest).ready
        manifest, ready = session.verified.manifest, self._enclave.life.admits
        entry = IndexEntry(
            name=manifest.name,
            version=manifest.version,
            state="READY" if ready else "UNAVAILABLE",
            reason="" if ready else self._enclave.life.reason,
        )
        return json_reply([entry] if ready or not only_ready else [])

    async def _budget(self, request: Request) -> Reply:
        session, consumer = self._known(request)
        renewal, now_s = session.renewal, self._clock.monotonic_s()
        valid_s = session.till.meter.valid_until_s() - now_s
        return json_reply(
            BudgetView(
                loan=session.loan,
                consumer=consumer,
                model=session.verified.manifest.name,
                model_version=session.verified.manifest.version,
                state=_LOAN_STATES.get(self._enclave.life.state, "unreachable"),
                remaining=self._remaining(session, consumer, now_s),
                own_budget=renewal.standing.has_own_budget(consumer),
                lease_remaining=session.till.meter.credits(now_s),
                lease_valid_s=max(0.0, valid_s),
                waiting=len(renewal.queue),
                token_price=None if _takes_tensors(session) else renewal.terms.tokens,
            )
        )

    async def _waiting(self, request: Request) -> Reply:
        session, consumer = self._known(request)
        renewal = session.renewal
        queue = renewal.queue
        own = [(one, queue.place(one)) for one in queue.of(consumer)[:MAX_WAITING_SHOWN]]
        return json_reply(
            WaitingView(
                waiting=len(queue),
                queries=tuple(
                    WaitingQuery(key=one.key, cost=one.cost, place=place.place)
                    for one, place in own
                    if place is not None
                ),
                limited=session.turnstile.waiting(consumer),
                asked=consumer in renewal.asking,
                decided=renewal.decisions.last(consumer, self._clock.monotonic_s()),
                again_s=max(LOOK_AGAIN_S, len(queue) / LOOKS_PER_S),
            )
        )

    def _remaining(self, session: Session, consumer: ConsumerId, now_s: float) -> int:
        """Return what *consumer* can still use here, in the state in which the enclave is."""
        life = self._enclave.life
        if life.state is State.UNREACHABLE:  # live leases pay, and there will be no other
            return session.till.meter.usable(consumer, now_s)
        return session.renewal.standing.remaining(consumer, now_s) if life.admits else 0

    def _known(self, request: Request) -> tuple[Session, ConsumerId]:
        """Return the session and whose key came; also while no query is admitted."""
        session = self._enclave.session
        if session is None:
            raise self._enclave.not_serving()
        return session, session.authenticate(request.headers.get(b"authorization"))


def _takes_tensors(session: Session) -> bool:
    return bool(session.verified.manifest.signature.inputs)


def _metadata(model: Model) -> ModelMetadata:
    if model.takes == "tensors":
        return model.metadata
    return ModelMetadata(
        name=model.name, versions=(model.version,), platform=model.platform, inputs=(), outputs=()
    )


def _not_allowed(methods: Iterable[str]) -> Reply:
    allowed = ", ".join(methods)
    error = NotFoundError("this path has no such method", expected=allowed)
    reply = problem_reply(error, [(b"allow", allowed.encode())])
    return Reply(_METHOD_NOT_ALLOWED, reply.headers, reply.chunks)
