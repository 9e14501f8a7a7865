"""A local FlyteAdmin: Flyte's own gRPC services, with the answers, the pages, the logins and the bad days of the real one.

Rules: flyteadmin's `rpc/adminservice`, `auth` and `common/filters.go`: filters joined by `+`, a page's token is
the offset of the next one, metadata of the login can be asked for by anybody.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote_plus

import grpc
import grpc.aio
from flyteidl.admin import common_pb2, execution_pb2, launch_plan_pb2, project_pb2, version_pb2
from flyteidl.core import execution_pb2 as core_execution_pb2
from flyteidl.service import admin_pb2_grpc, auth_pb2, auth_pb2_grpc
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dispatcher.web.server import serving

_ANONYMOUS = "/flyteidl.service.AuthMetadataService/"
_PAGE = 100
_LISTED_ERROR = 100
"""Characters of an error that a list shows."""


@dataclass(slots=True)
class Login:
    """Who may ask, as an OAuth2 server for client credentials knows them."""

    client_id: str = "dispatcher"
    client_secret: str = "secret-of-the-client"  # noqa: S105 - no secret: the demo's own
    scopes: tuple[str, ...] = ("all",)
    life: Any = 3600
    """`expires_in`, as it stands in the answer; seconds where the server is right in its mind."""
    metadata_key: str = "flyte-authorization"
    """Where the token is looked for, beside nothing: Flyte lets operators rename the header."""
    scripted: list[tuple[int, bytes]] = field(default_factory=list)
    """Answers of the token endpoint that come first, status and body."""
    requested: list[dict[str, str]] = field(default_factory=list)
    """The token requests that came."""
    valid: set[str] = field(default_factory=set)
    """Tokens that are accepted; take one out, and it has expired."""

    async def token(self, request: Request) -> Response:
        """The token endpoint (RFC 6749, 4.4)."""
        form = dict(parse_qsl((await request.body()).decode()))
        self.requested.append(form)
        if self.scripted:
            status, body = self.scripted.pop(0)
            return Response(body, status, media_type="application/json")
        if not self._known(request.headers.get("authorization", "")):
            return JSONResponse({"error": "invalid_client", "error_description": "the secret has expired"}, 401)
        if form.get("grant_type") != "client_credentials":
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        if not set(form.get("scope", "").split()) <= set(self.scopes):
            return JSONResponse({"error": "invalid_scope"}, 400)
        token = f"token-{len(self.requested)}"
        self.valid.add(token)
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": self.life})

    def _known(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        if scheme != "Basic":
            return False
        client, _, secret = base64.b64decode(encoded).decode().partition(":")
        return (unquote_plus(client), unquote_plus(secret)) == (self.client_id, self.client_secret)


@dataclass(slots=True)
class LocalFlyteAdmin:
    """The server, on a free loopback port; use it by `async with`."""

    executions: dict[str, Any] = field(default_factory=dict)
    """`project/domain/name` -> flyteidl's Execution."""
    written: dict[str, datetime] = field(default_factory=dict)
    """When an execution's row was last written, where that was later than its `closure.updated_at`: archiving does it."""
    launch_plans: dict[str, Any] = field(default_factory=dict)
    """`project/domain/name@version` -> flyteidl's LaunchPlan."""
    forbidden: set[str] = field(default_factory=set)
    """Executions that nobody may see, and places (`project/domain`) that nobody may list."""
    login: Login | None = None
    tls: tuple[bytes, bytes] | None = None
    """Private key and certificate chain, PEM."""
    port: int = 0
    delay: float = 0.0
    """Seconds before each answer."""
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    """Clear it, and no question is answered until it is set again."""
    failing: list[grpc.StatusCode] = field(default_factory=list)
    """Statuses that the next questions get, in order."""
    broken: dict[str, grpc.StatusCode] = field(default_factory=dict)
    """Executions, and places, whose questions are always answered with a status."""
    garbage: bytes | None = None
    """Sent in place of every answer."""
    asked: Counter[str] = field(default_factory=Counter)
    """Questions by the method's name."""
    looked_up: Counter[str] = field(default_factory=Counter)
    """GetExecution's questions by execution."""
    at_once: int = 0
    """The most questions that were open at the same time."""
    open: int = 0
    """Questions that are open now."""
    _token_url: str = ""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _server: grpc.aio.Server | None = None

    def __post_init__(self) -> None:
        self.answering.set()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def token_url(self) -> str:
        """The token endpoint's address."""
        return self._token_url

    def add(self, execution: Mapping[str, Any]) -> Any:
        """Take in an Execution, in protobuf's JSON; the message, to be changed further."""
        message = ParseDict(dict(execution), execution_pb2.Execution())
        self.executions[_named(message.id)] = message
        return message

    def add_launch_plan(self, plan: Mapping[str, Any]) -> None:
        """Take in a LaunchPlan, in protobuf's JSON."""
        message = ParseDict(dict(plan), launch_plan_pb2.LaunchPlan())
        self.launch_plans[f"{_named(message.id)}@{message.id.version}"] = message

    async def __aenter__(self) -> Self:
        if self.login is not None:
            routes = [Route("/token", self.login.token, methods=["POST"])]
            base = await self._stack.enter_async_context(serving(Starlette(routes=routes), "127.0.0.1", 0))
            self._token_url = f"{base}/token"
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self._stack.aclose()

    async def start(self) -> None:
        """Begin to listen, on the same port as before."""
        server = grpc.aio.server(interceptors=[_Temper(self)], options=[("grpc.so_reuseport", 0)])
        admin_pb2_grpc.add_AdminServiceServicer_to_server(_Answers(self), server)
        auth_pb2_grpc.add_AuthMetadataServiceServicer_to_server(_LoginAnswers(self), server)
        address = f"127.0.0.1:{self.port}"
        if self.tls is None:
            self.port = server.add_insecure_port(address)
        else:
            self.port = server.add_secure_port(address, grpc.ssl_server_credentials([self.tls]))
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Hang up on everybody."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def behave(self, method: str, request: Any, context: Any, answer: Callable[[], Awaitable[Any]]) -> Any:
        """Answer one question the way we are feeling."""
        self.open += 1
        self.asked[method.rpartition("/")[2]] += 1
        self.at_once = max(self.at_once, self.open)
        try:
            await self._check_login(method, context)
            await self.answering.wait()
            await asyncio.sleep(self.delay)  # noqa: TID251 - a server's own slowness
            if self.failing:
                await context.abort(self.failing.pop(0), "as the script wants it")
            named = _named(request.id) if isinstance(request, execution_pb2.WorkflowExecutionGetRequest) else ""
            if named:
                self.looked_up[named] += 1
            if named in self.broken:
                await context.abort(self.broken[named], "this one is broken")
            return self.garbage if self.garbage is not None else await answer()
        finally:
            self.open -= 1

    async def _check_login(self, method: str, context: Any) -> None:
        if self.login is None or method.startswith(_ANONYMOUS):
            return
        shown = dict(context.invocation_metadata()).get(self.login.metadata_key, "")
        scheme, _, token = str(shown).partition(" ")
        if scheme != "Bearer" or token not in self.login.valid:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "token parse error")


class _Temper(grpc.aio.ServerInterceptor):
    """Lets the server's mood into every answer."""

    def __init__(self, admin: LocalFlyteAdmin) -> None:
        self._admin = admin

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None

        async def behave(request: Any, context: Any) -> Any:
            async def answer() -> Any:
                return await handler.unary_unary(request, context)

            return await self._admin.behave(handler_call_details.method, request, context, answer)

        def serialize(message: Any) -> bytes:
            return message if isinstance(message, bytes) else handler.response_serializer(message)

        return grpc.unary_unary_rpc_method_handler(
            behave, request_deserializer=handler.request_deserializer, response_serializer=serialize
        )


class _Answers(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]  # generated, untyped
    """flyteadmin's answers; what isn't here is UNIMPLEMENTED."""

    def __init__(self, admin: LocalFlyteAdmin) -> None:
        self._admin = admin

    async def GetVersion(self, _: Any, __: Any) -> Any:  # noqa: N802 - gRPC's names, here and below
        return version_pb2.GetVersionResponse(control_plane_version=version_pb2.Version(Version="v1.16.8"))

    async def GetExecution(self, request: Any, context: Any) -> Any:  # noqa: N802
        name = _named(request.id)
        if name in self._admin.forbidden:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "resource not permitted")
        if name not in self._admin.executions:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"missing entity of type execution with identifier {name}")
        return self._admin.executions[name]

    async def GetLaunchPlan(self, request: Any, context: Any) -> Any:  # noqa: N802
        name = f"{_named(request.id)}@{request.id.version}"
        if name not in self._admin.launch_plans:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"missing entity of type LAUNCH_PLAN with identifier {name}")
        return self._admin.launch_plans[name]

    async def ListProjects(self, request: Any, _: Any) -> Any:  # noqa: N802
        domains: dict[str, set[str]] = {}
        for execution in self._admin.executions.values():
            domains.setdefault(execution.id.project, set()).add(execution.id.domain)
        projects = [
            project_pb2.Project(id=name, domains=[project_pb2.Domain(id=domain) for domain in sorted(found)])
            for name, found in sorted(domains.items())
        ]
        page, following = _page(projects, request)
        return project_pb2.Projects(projects=page, token=following)

    async def ListExecutions(self, request: Any, context: Any) -> Any:  # noqa: N802
        place = f"{request.id.project}/{request.id.domain}"
        if place in self._admin.forbidden:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "resource not permitted")
        if place in self._admin.broken:
            await context.abort(self._admin.broken[place], "this one is broken")
        try:
            matches = _filters(request.filters)
            int(request.token or 0)
        except (ValueError, KeyError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"invalid filters or token: {error}")
            raise
        found = [
            execution
            for execution in self._admin.executions.values()
            if f"{execution.id.project}/{execution.id.domain}" == place
            and all(match(self._admin, execution) for match in matches)
        ]
        key = _FIELDS.get(request.sort_by.key, _FIELDS["created_at"])
        found.sort(key=partial(key, self._admin), reverse=request.sort_by.direction == common_pb2.Sort.DESCENDING)
        page, following = _page(found, request)
        return execution_pb2.ExecutionList(executions=[_as_listed(execution) for execution in page], token=following)


class _LoginAnswers(auth_pb2_grpc.AuthMetadataServiceServicer):  # type: ignore[misc]  # generated, untyped
    """How to log in."""

    def __init__(self, admin: LocalFlyteAdmin) -> None:
        self._admin = admin

    async def GetOAuth2Metadata(self, _: Any, __: Any) -> Any:  # noqa: N802
        return auth_pb2.OAuth2MetadataResponse(issuer=self._admin.endpoint, token_endpoint=self._admin.token_url)

    async def GetPublicClientConfig(self, _: Any, __: Any) -> Any:  # noqa: N802
        login = self._admin.login or Login()
        return auth_pb2.PublicClientAuthConfigResponse(
            client_id="flytectl", scopes=login.scopes, authorization_metadata_key=login.metadata_key, audience="flyte"
        )


_FIELDS: Mapping[str, Callable[[LocalFlyteAdmin, Any], Any]] = {
    "phase": lambda _, execution: core_execution_pb2.WorkflowExecution.Phase.Name(execution.closure.phase),
    "created_at": lambda _, execution: execution.closure.created_at.ToDatetime(UTC),
    "started_at": lambda _, execution: execution.closure.started_at.ToDatetime(UTC),
    "updated_at": lambda admin, execution: (
        admin.written.get(_named(execution.id)) or execution.closure.updated_at.ToDatetime(UTC)
    ),
}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda one, other: one == other,
    "ne": lambda one, other: one != other,
    "gt": lambda one, other: one > other,
    "gte": lambda one, other: one >= other,
    "lt": lambda one, other: one < other,
    "lte": lambda one, other: one <= other,
}


def _page(found: list[Any], request: Any) -> tuple[list[Any], str]:
    """The page that was asked for, and the token of the next one: its offset."""
    offset, limit = int(request.token or 0), request.limit or _PAGE
    return found[offset : offset + limit], str(offset + limit) if offset + limit < len(found) else ""


def _as_listed(execution: Any) -> Any:
    """Lists cut errors short, as flyteadmin's `transformers/execution.go` does."""
    if execution.closure.WhichOneof("output_result") != "error":
        return execution
    listed = execution_pb2.Execution.FromString(execution.SerializeToString())
    listed.closure.error.message = listed.closure.error.message[:_LISTED_ERROR]
    return listed


def _filters(text: str) -> list[Callable[[LocalFlyteAdmin, Any], bool]]:
    """`value_in(phase,FAILED;ABORTED)+gte(updated_at,2026-11-20T09:00:00Z)`. Raises ValueError or KeyError."""
    return [_filter(part) for part in text.split("+") if part]


def _filter(text: str) -> Callable[[LocalFlyteAdmin, Any], bool]:
    function, _, rest = text.removesuffix(")").partition("(")
    name, _, value = rest.partition(",")
    get = _FIELDS[name]
    if function == "value_in":
        wanted = set(value.split(";"))
        return lambda admin, execution: get(admin, execution) in wanted
    compare = _COMPARE[function]
    bound = value if name == "phase" else datetime.fromisoformat(value)
    return lambda admin, execution: compare(get(admin, execution), bound)


def _named(identity: Any) -> str:
    return f"{identity.project}/{identity.domain}/{identity.name}"
