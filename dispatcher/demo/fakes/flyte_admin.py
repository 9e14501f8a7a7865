"""A fake FlyteAdmin: serves Flyte's gRPC services locally, with filters, pages, OAuth2 and scripted errors.

The fake behaves like flyteadmin's `rpc/adminservice`, `auth` and `common/filters.go`: `+` separates the filters, a page
token is the offset of the next page, and AuthMetadataService needs no token.
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

_ANONYMOUS_SERVICE = "/flyteidl.service.AuthMetadataService/"
_PAGE_SIZE = 100
_MAX_LISTED_ERROR = 100
"""Maximum length of each execution's error message in a list, in characters. The rest is cut off, as in flyteadmin."""


@dataclass(slots=True)
class OAuthServer:
    """A fake token endpoint for OAuth2 client credentials, which knows one client."""

    client_id: str = "dispatcher"
    client_secret: str = "secret-of-the-client"  # noqa: S105 - only fake servers accept this value
    scopes: tuple[str, ...] = ("all",)
    expires_in: Any = 3600
    """The value of `expires_in` in responses: a number of seconds, or an invalid value for a test."""
    metadata_key: str = "flyte-authorization"
    """The gRPC metadata key that carries the token. Flyte's operators can choose another key."""
    scripted_responses: list[tuple[int, bytes]] = field(default_factory=list)
    """Status and body of each scripted response. The token endpoint sends them before any normal response."""
    token_requests: list[dict[str, str]] = field(default_factory=list)
    """The form data of each token request so far, in order."""
    valid_tokens: set[str] = field(default_factory=set)
    """The tokens that FlyteAdmin accepts. To simulate an expired token, a test removes it from this set."""

    async def token(self, request: Request) -> Response:
        """Answer a token request (RFC 6749, 4.4)."""
        form = dict(parse_qsl((await request.body()).decode()))
        self.token_requests.append(form)
        if self.scripted_responses:
            status, body = self.scripted_responses.pop(0)
            return Response(body, status, media_type="application/json")
        if not self._accepts(request.headers.get("authorization", "")):
            return JSONResponse({"error": "invalid_client", "error_description": "the secret has expired"}, 401)
        if form.get("grant_type") != "client_credentials":
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        if not set(form.get("scope", "").split()) <= set(self.scopes):
            return JSONResponse({"error": "invalid_scope"}, 400)
        token = f"token-{len(self.token_requests)}"
        self.valid_tokens.add(token)
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": self.expires_in})

    def _accepts(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        if scheme != "Basic":
            return False
        client, _, secret = base64.b64decode(encoded).decode().partition(":")
        return (unquote_plus(client), unquote_plus(secret)) == (self.client_id, self.client_secret)


@dataclass(slots=True)
class LocalFlyteAdmin:
    """The fake server, which listens on a free loopback port. `async with` starts and stops the server."""

    executions: dict[str, Any] = field(default_factory=dict)
    """Mapping from `project/domain/name` to flyteidl's Execution."""
    row_updated_at: dict[str, datetime] = field(default_factory=dict)
    """Mapping from an execution to the time at which its database row was last updated.

    Executions that are not in this mapping have the time `closure.updated_at`. In flyteadmin, the row's time is later
    if, for example, the execution was archived.
    """
    launch_plans: dict[str, Any] = field(default_factory=dict)
    """Mapping from `project/domain/name@version` to flyteidl's LaunchPlan."""
    forbidden: set[str] = field(default_factory=set)
    """Executions that the client may not read, and places (`project/domain`) that the client may not list."""
    oauth: OAuthServer | None = None
    tls: tuple[bytes, bytes] | None = None
    """Private key and certificate chain (PEM). If None, the server does not use TLS."""
    port: int = 0
    delay: float = 0.0
    """The server waits this many seconds before each response."""
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    """The server responds only while this asyncio event is set."""
    scripted_errors: list[grpc.StatusCode] = field(default_factory=list)
    """Error statuses for the next requests, in order. Each status answers one request."""
    database_down: bool = False
    """If true, every method that reads the database answers INTERNAL, as flyteadmin does. GetVersion does not read it."""
    errors_by_name: dict[str, grpc.StatusCode] = field(default_factory=dict)
    """Mapping from an execution or a place (`project/domain`) to an error status. Every request for this execution or
    place gets that error."""
    raw_answer: bytes | None = None
    """If set, the server answers every request with these bytes, for example to test invalid answers."""
    requests_by_method: Counter[str] = field(default_factory=Counter)
    """Mapping from each method's name to the number of its requests so far."""
    lookups_by_execution: Counter[str] = field(default_factory=Counter)
    """Mapping from each execution to the number of GetExecution requests for it so far."""
    max_concurrent: int = 0
    """The highest value of `concurrent` so far."""
    concurrent: int = 0
    """Number of requests that the server is handling now."""
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
        """The URL of the token endpoint; empty without `oauth`."""
        return self._token_url

    def add(self, execution: Mapping[str, Any]) -> Any:
        """Add an Execution, which is given as protobuf JSON. Returns the protobuf message, which a test may change."""
        message = ParseDict(dict(execution), execution_pb2.Execution())
        self.executions[_full_name(message.id)] = message
        return message

    def add_launch_plan(self, plan: Mapping[str, Any]) -> None:
        """Add a LaunchPlan, which is given as protobuf JSON."""
        message = ParseDict(dict(plan), launch_plan_pb2.LaunchPlan())
        self.launch_plans[f"{_full_name(message.id)}@{message.id.version}"] = message

    async def __aenter__(self) -> Self:
        if self.oauth is not None:
            routes = [Route("/token", self.oauth.token, methods=["POST"])]
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
        """Start the server. After `stop`, the server uses the same port again."""
        server = grpc.aio.server(interceptors=[_Interceptor(self)], options=[("grpc.so_reuseport", 0)])
        admin_pb2_grpc.add_AdminServiceServicer_to_server(_AdminService(self), server)
        auth_pb2_grpc.add_AuthMetadataServiceServicer_to_server(_AuthMetadataService(self), server)
        address = f"127.0.0.1:{self.port}"
        if self.tls is None:
            self.port = server.add_insecure_port(address)
        else:
            self.port = server.add_secure_port(address, grpc.ssl_server_credentials([self.tls]))
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Stop the server and close all its connections."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def handle(self, method: str, request: Any, context: Any, answer: Callable[[], Awaitable[Any]]) -> Any:
        """Handle one request: count the request, check its token, wait, raise a scripted error, or call `answer`."""
        self.concurrent += 1
        self.requests_by_method[method.rpartition("/")[2]] += 1
        self.max_concurrent = max(self.max_concurrent, self.concurrent)
        try:
            await self._check_token(method, context)
            await self.answering.wait()
            await asyncio.sleep(self.delay)  # noqa: TID251 - a fake server waits in real time
            if self.database_down and not method.endswith("/GetVersion"):
                await context.abort(
                    grpc.StatusCode.INTERNAL, "failed database operation with dial tcp: connect: refused"
                )
            if self.scripted_errors:
                await context.abort(self.scripted_errors.pop(0), "as the script wants it")
            name = _full_name(request.id) if isinstance(request, execution_pb2.WorkflowExecutionGetRequest) else ""
            if name:
                self.lookups_by_execution[name] += 1
            if name in self.errors_by_name:
                await context.abort(self.errors_by_name[name], "this one is broken")
            return self.raw_answer if self.raw_answer is not None else await answer()
        finally:
            self.concurrent -= 1

    async def _check_token(self, method: str, context: Any) -> None:
        if self.oauth is None or method.startswith(_ANONYMOUS_SERVICE):
            return
        value = dict(context.invocation_metadata()).get(self.oauth.metadata_key, "")
        scheme, _, token = str(value).partition(" ")
        if scheme != "Bearer" or token not in self.oauth.valid_tokens:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "token parse error")


class _Interceptor(grpc.aio.ServerInterceptor):
    """Passes every request through `LocalFlyteAdmin.handle`."""

    def __init__(self, admin: LocalFlyteAdmin) -> None:
        self._admin = admin

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None

        async def handle(request: Any, context: Any) -> Any:
            async def answer() -> Any:
                return await handler.unary_unary(request, context)

            return await self._admin.handle(handler_call_details.method, request, context, answer)

        def serialize(message: Any) -> bytes:
            return message if isinstance(message, bytes) else handler.response_serializer(message)

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=handler.request_deserializer, response_serializer=serialize
        )


class _AdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]  # generated without types
    """The methods of AdminService that the dispatcher uses. All other methods answer UNIMPLEMENTED."""

    def __init__(self, admin: LocalFlyteAdmin) -> None:
        self._admin = admin

    async def GetVersion(self, _: Any, __: Any) -> Any:  # noqa: N802 - gRPC prescribes these names
        return version_pb2.GetVersionResponse(control_plane_version=version_pb2.Version(Version="v1.16.8"))

    async def GetExecution(self, request: Any, context: Any) -> Any:  # noqa: N802
        name = _full_name(request.id)
        if name in self._admin.forbidden:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "resource not permitted")
        if name not in self._admin.executions:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"missing entity of type execution with identifier {name}")
        return self._admin.executions[name]

    async def GetLaunchPlan(self, request: Any, context: Any) -> Any:  # noqa: N802
        name = f"{_full_name(request.id)}@{request.id.version}"
        if name not in self._admin.launch_plans:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"missing entity of type LAUNCH_PLAN with identifier {name}")
        return self._admin.launch_plans[name]

    async def GetActiveLaunchPlan(self, request: Any, context: Any) -> Any:  # noqa: N802
        for plan in self._versions(request.id):
            if plan.closure.state == launch_plan_pb2.ACTIVE:
                return plan
        await context.abort(grpc.StatusCode.NOT_FOUND, f"no active launch plan of {_full_name(request.id)}")
        raise AssertionError("abort raises")

    async def ListLaunchPlans(self, request: Any, _: Any) -> Any:  # noqa: N802
        page, next_token = _page(self._versions(request.id), request)
        return launch_plan_pb2.LaunchPlanList(launch_plans=page, token=next_token)

    def _versions(self, identity: Any) -> list[Any]:
        """Return a launch plan's versions, newest first: the one that was added last is the newest."""
        added = reversed(self._admin.launch_plans.values())
        return [plan for plan in added if _full_name(plan.id) == _full_name(identity)]

    async def ListProjects(self, request: Any, _: Any) -> Any:  # noqa: N802
        domains: dict[str, set[str]] = {}
        for execution in self._admin.executions.values():
            domains.setdefault(execution.id.project, set()).add(execution.id.domain)
        projects = [
            project_pb2.Project(id=name, domains=[project_pb2.Domain(id=domain) for domain in sorted(found)])
            for name, found in sorted(domains.items())
        ]
        page, next_token = _page(projects, request)
        return project_pb2.Projects(projects=page, token=next_token)

    async def ListExecutions(self, request: Any, context: Any) -> Any:  # noqa: N802
        place = f"{request.id.project}/{request.id.domain}"
        if place in self._admin.forbidden:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "resource not permitted")
        if place in self._admin.errors_by_name:
            await context.abort(self._admin.errors_by_name[place], "this one is broken")
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
        page, next_token = _page(found, request)
        return execution_pb2.ExecutionList(executions=[_as_listed(execution) for execution in page], token=next_token)


class _AuthMetadataService(auth_pb2_grpc.AuthMetadataServiceServicer):  # type: ignore[misc]  # generated without types
    """Answers clients that ask where and how to request a token."""

    def __init__(self, admin: LocalFlyteAdmin) -> None:
        self._admin = admin

    async def GetOAuth2Metadata(self, _: Any, __: Any) -> Any:  # noqa: N802
        return auth_pb2.OAuth2MetadataResponse(issuer=self._admin.endpoint, token_endpoint=self._admin.token_url)

    async def GetPublicClientConfig(self, _: Any, __: Any) -> Any:  # noqa: N802
        oauth = self._admin.oauth or OAuthServer()
        return auth_pb2.PublicClientAuthConfigResponse(
            client_id="flytectl", scopes=oauth.scopes, authorization_metadata_key=oauth.metadata_key, audience="flyte"
        )


_FIELDS: Mapping[str, Callable[[LocalFlyteAdmin, Any], Any]] = {
    "state": lambda _, execution: str(execution.closure.state_change_details.state),
    "phase": lambda _, execution: core_execution_pb2.WorkflowExecution.Phase.Name(execution.closure.phase),
    "created_at": lambda _, execution: execution.closure.created_at.ToDatetime(UTC),
    "started_at": lambda _, execution: execution.closure.started_at.ToDatetime(UTC),
    "updated_at": lambda admin, execution: (
        admin.row_updated_at.get(_full_name(execution.id)) or execution.closure.updated_at.ToDatetime(UTC)
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
    """Return the requested page and the token of the next page.

    The token is the offset of the next page; empty if there is no next page.
    """
    offset, limit = int(request.token or 0), request.limit or _PAGE_SIZE
    return found[offset : offset + limit], str(offset + limit) if offset + limit < len(found) else ""


def _as_listed(execution: Any) -> Any:
    """Return the execution as in a list: with a shortened error (flyteadmin's `transformers/execution.go`)."""
    if execution.closure.WhichOneof("output_result") != "error":
        return execution
    listed = execution_pb2.Execution.FromString(execution.SerializeToString())
    listed.closure.error.message = listed.closure.error.message[:_MAX_LISTED_ERROR]
    return listed


def _filters(text: str) -> list[Callable[[LocalFlyteAdmin, Any], bool]]:
    """Parse filters such as `value_in(phase,FAILED;ABORTED)+gte(updated_at,2026-11-20T09:00:00Z)`.

    Without a filter for `state`, only active executions match, as in flyteadmin. Raises ValueError or KeyError if a
    filter is invalid.
    """
    parts = [part for part in text.split("+") if part]
    if not any("(state," in part for part in parts):
        parts.append(f"value_in(state,{execution_pb2.EXECUTION_ACTIVE})")
    return [_filter(part) for part in parts]


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


def _full_name(identity: Any) -> str:
    return f"{identity.project}/{identity.domain}/{identity.name}"
