"""The gRPC client of FlyteAdmin: looks up an execution's details and effective rules, and lists executions.

Each request has a deadline. Until the deadline, the client repeats a request that fails with a transient error. After
the deadline, the client raises FlyteAdminUnavailable, and intake waits. If FlyteAdmin does not know the execution or
refuses access, the result is UnknownExecution.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import structlog
from flyteidl.admin import common_pb2, execution_pb2, project_pb2, version_pb2
from flyteidl.core import identifier_pb2
from flyteidl.service import admin_pb2_grpc, auth_pb2, auth_pb2_grpc
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from dispatcher.clock import Clock, loop_time
from dispatcher.errors import FlyteAdminUnavailable, SettingsError
from dispatcher.flyte.admin.config import FlyteAdminConfig
from dispatcher.flyte.admin.errors import PermanentError, ServerError, TransientError, classify_error
from dispatcher.flyte.admin.launch_plans import LaunchPlans
from dispatcher.flyte.admin.mapping import execution_of, finished_between, terminal_event_of
from dispatcher.flyte.admin.oauth import AuthMetadata, OAuthClient, Token
from dispatcher.flyte.admin.single_flight import SingleFlight
from dispatcher.model.event import EntityId, Event, ExecutionId
from dispatcher.rules import AdminExecution, UnknownExecution

log = structlog.get_logger(__name__)

PARALLEL = 100
"""Maximum number of concurrent look-ups; further look-ups wait. The number is 100 because many proxies allow 100 gRPC
streams on one connection."""
SHUTDOWN_DEADLINE = 3
"""Maximum duration of a request during shutdown, in seconds."""
PAGE_SIZE = 100
"""Maximum number of executions or projects on one page of a list."""
LARGE = 64 * 1024
"""Number of bytes from which on an answer is converted in another thread."""
_MAX_MESSAGE_BYTES = 32 * 2**20

_Method = Callable[[Any], Any]
"""A method of a gRPC service. It takes a request, and returns a call that the caller awaits."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list of finished executions, as their terminal events."""

    events: Sequence[Event]
    next_token: str
    """The token of the next page; empty on the last page."""


class _Connection:
    """A gRPC channel with the stubs of Flyte's services."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.auth_metadata = auth_pb2_grpc.AuthMetadataServiceStub(channel)


class FlyteAdmin:
    """The client of one FlyteAdmin server. `async with` closes the connection at the end of the block."""

    def __init__(self, config: FlyteAdminConfig, clock: Clock) -> None:
        self._config = config
        self._credentials = None if config.insecure else grpc.ssl_channel_credentials(_certificates(config))
        self._oauth = OAuthClient(config, clock) if config.client_id else None
        self._slots = asyncio.Semaphore(PARALLEL)
        self._look_ups: SingleFlight[ExecutionId, AdminExecution | UnknownExecution] = SingleFlight()
        self._launch_plans = LaunchPlans(self._call)
        self._timeout = config.timeout.total_seconds()
        self._deadlines: set[asyncio.Timeout] = set()
        self._connection = self._connect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.channel.close()

    def shorten_deadlines(self) -> None:
        """Reduce the timeout of running and later requests to SHUTDOWN_DEADLINE seconds. Called at shutdown."""
        self._timeout = min(self._timeout, SHUTDOWN_DEADLINE)
        latest = loop_time() + self._timeout
        for deadline in self._deadlines:
            deadline.reschedule(min(deadline.when() or latest, latest))

    async def look_up(self, execution: ExecutionId) -> AdminExecution | UnknownExecution:
        """Return an execution's details and effective rules, from FlyteAdmin's method `AdminService.GetExecution`.

        Raises FlyteAdminUnavailable if FlyteAdmin does not answer in time or rejects the client's credentials.
        """
        return await self._look_ups.run(execution, lambda: self._look_up(execution))

    async def launch_plan(self, plan: EntityId) -> AdminExecution | UnknownExecution:
        """Return what an execution of the launch plan would get; see `LaunchPlans.find`. Raises FlyteAdminUnavailable."""
        return await self._launch_plans.find(plan)

    async def event(self, execution: ExecutionId) -> Event:
        """Return an event with the execution's current phase and, if the execution failed, the complete error.

        Raises FlyteAdminUnavailable. An unknown execution and an invalid answer raise the same error.
        """
        try:
            message = await self._get_execution(execution)
            return execution_of(message).complete(terminal_event_of(message))
        except PermanentError as error:
            raise FlyteAdminUnavailable(str(error)) from None

    async def unready_reason(self) -> str | None:
        """Return the reason why FlyteAdmin cannot be used, which /readyz shows. Returns None if FlyteAdmin answers.

        FlyteAdmin needs its database for the answer. A client that may not list projects gets the version instead.
        """
        try:
            try:
                answer = await self._list_one_project()
            except PermanentError:
                answer = await self._call("GetVersion", version_pb2.GetVersionRequest(), "its version")
        except (FlyteAdminUnavailable, PermanentError) as error:
            return str(error)
        return None if answer is not None else f"{self._config.endpoint} answered what can't be understood"

    async def places(self) -> list[tuple[str, str]]:
        """Return each pair of a project and one of the project's domains, from `AdminService.ListProjects`.

        Raises FlyteAdminUnavailable if FlyteAdmin cannot be reached or refuses to list the projects.
        """
        found: list[tuple[str, str]] = []
        token = ""
        while True:
            request = project_pb2.ProjectListRequest(limit=PAGE_SIZE, token=token)
            try:
                answer = await self._list("ListProjects", request, "the list of projects")
            except PermanentError as error:
                raise FlyteAdminUnavailable(str(error)) from None
            found += [(project.id, domain.id) for project in answer.projects for domain in project.domains]
            if not answer.token or answer.token == token:
                return found
            token = answer.token

    async def list_finished(
        self, project: str, domain: str, *, since: datetime, until: datetime, token: str = ""
    ) -> Page:
        """Return one page of the finished executions of a project and domain, as their terminal events.

        The list contains the executions whose row in FlyteAdmin's database was last updated between `since` and
        `until`. Executions with invalid values are logged and skipped. If FlyteAdmin refuses to list the executions,
        the refusal is logged, and the page is empty. Raises FlyteAdminUnavailable.
        """
        request = common_pb2.ResourceListRequest(
            id=common_pb2.NamedEntityIdentifier(project=project, domain=domain),
            limit=PAGE_SIZE,
            token=token,
            filters=finished_between(since, until),
            sort_by=common_pb2.Sort(key="created_at", direction=common_pb2.Sort.ASCENDING),
        )
        try:
            answer = await self._list("ListExecutions", request, f"the executions of {project}/{domain}")
        except PermanentError as error:
            log.warning("executions can't be listed", project=project, domain=domain, reason=str(error))
            return Page((), "")
        events = []
        for message in answer.executions:
            try:
                events.append(terminal_event_of(message))
            except PermanentError as error:
                log.warning("skipped an execution", execution=message.id.name, reason=str(error))
        return Page(events, answer.token if answer.token != token else "")

    async def _list(self, method: str, request: Any, what: str) -> Any:
        answer = await self._call(method, request, what)
        if answer is None:
            raise FlyteAdminUnavailable(f"{self._config.endpoint} answered what can't be understood to {what}")
        return answer

    async def _look_up(self, execution: ExecutionId) -> AdminExecution | UnknownExecution:
        async with self._slots:
            try:
                return await self._admin_execution(execution)
            except PermanentError as error:
                return UnknownExecution(str(error))
            except ServerError as error:
                if not await self._answers_other_requests():
                    raise
                # Only the request for this execution fails. Waiting for an answer would block all later messages.
                return UnknownExecution(str(error))

    async def _get_execution(self, execution: ExecutionId) -> Any:
        request = execution_pb2.WorkflowExecutionGetRequest(
            id=identifier_pb2.WorkflowExecutionIdentifier(
                project=execution.project, domain=execution.domain, name=execution.name
            )
        )
        message = await self._call("GetExecution", request, f"execution {execution}")
        if message is None or (message.id.project, message.id.domain, message.id.name) != (
            execution.project,
            execution.domain,
            execution.name,
        ):
            raise PermanentError(
                f"the answer of rules.flyte_admin.endpoint {self._config.endpoint} to execution {execution} "
                "can't be understood: it is no such Execution"
            )
        return message

    async def _admin_execution(self, execution: ExecutionId) -> AdminExecution:
        message = await self._get_execution(execution)
        if message.ByteSize() > LARGE:  # for example with thousands of rules: the event loop must not wait
            found = await asyncio.to_thread(execution_of, message)
        else:
            found = execution_of(message)
        plan = found.launch_plan
        if plan is not None and not plan.resource_type and (found.own or found.disabled):
            return replace(found, replaced=await self._launch_plans.rules(plan))
        return found

    async def _answers_other_requests(self) -> bool:
        """True if FlyteAdmin can list a project from its database. Called after a request for one execution failed."""
        try:
            return await self._list_one_project() is not None
        except (FlyteAdminUnavailable, PermanentError):
            return False

    async def _list_one_project(self) -> Any:
        return await self._call("ListProjects", project_pb2.ProjectListRequest(limit=1), "the list of projects")

    async def _call(self, method: str, request: Any, what: str) -> Any:
        """Send one request, with retries until the deadline. Returns None if the answer is not of the expected type.

        `what` names the requested object in error messages. Raises PermanentError or FlyteAdminUnavailable.
        """
        connection = self._connection  # this reference keeps the gRPC channel open while the request runs
        last_error: list[BaseException] = []

        def remember_error(state: RetryCallState) -> None:
            if state.outcome is not None and (error := state.outcome.exception()) is not None:
                last_error[:] = [error]

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            before_sleep=remember_error,
        )
        try:
            async with self._deadline():
                return await retrying(self._call_once, connection, method, request, what)
        except TimeoutError:
            # If the last request for a token failed, its error explains the timeout best, so that error is raised.
            if self._oauth is not None and self._oauth.last_error is not None:
                last_error = [self._oauth.last_error]
            if last_error:
                raise last_error[0] from None
            if self._connection is connection:
                # The connection may be dead although it reported no error, so later requests use a new one.
                self._connection = self._connect()
            raise TransientError(
                f"rules.flyte_admin.endpoint: no answer from {self._config.endpoint} "
                f"within {self._timeout:g} s (rules.flyte_admin.timeout)"
            ) from None

    async def _call_once(self, connection: _Connection, method: str, request: Any, what: str) -> Any:
        call = getattr(connection.admin, method)
        fetch_auth_metadata = partial(self._auth_metadata, connection)
        token = await self._oauth.token(fetch_auth_metadata) if self._oauth is not None else None
        try:
            return await call(request, metadata=_metadata(token))
        except grpc.aio.AioRpcError as error:
            if self._oauth is None or error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise self._classified(error, what) from None
        token = await self._oauth.token(fetch_auth_metadata, refused=token)
        try:
            return await call(request, metadata=_metadata(token))
        except grpc.aio.AioRpcError as error:
            raise self._classified(error, what) from None

    async def _auth_metadata(self, connection: _Connection) -> AuthMetadata:
        """Ask FlyteAdmin where and how to request an access token.

        Called before each request for a token, so that the client uses the current values.
        """
        service = connection.auth_metadata
        client = await self._call_auth_service(service.GetPublicClientConfig, auth_pb2.PublicClientAuthConfigRequest())
        endpoint = self._config.token_endpoint
        if endpoint is None:
            server = await self._call_auth_service(service.GetOAuth2Metadata, auth_pb2.OAuth2MetadataRequest())
            endpoint = server.token_endpoint if server is not None else ""
        if client is None:
            return AuthMetadata(endpoint)
        key = client.authorization_metadata_key.lower() or "authorization"
        return AuthMetadata(endpoint, tuple(client.scopes), client.audience, key)

    async def _call_auth_service(self, call: _Method, request: Any) -> Any:
        """Call a method of AuthMetadataService. Returns None if the server does not have this service."""
        try:
            return await call(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and "http" not in (error.details() or ""):
                return None
            raised = self._classified(error, "how to log in")
            raise FlyteAdminUnavailable(str(raised)) if isinstance(raised, PermanentError) else raised from None

    def _classified(self, error: grpc.aio.AioRpcError, what: str) -> Exception:
        return classify_error(error, what, endpoint=self._config.endpoint, insecure=self._config.insecure)

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Raise TimeoutError if the block takes longer than the timeout, which `shorten_deadlines` may reduce."""
        async with asyncio.timeout(self._timeout) as deadline:
            self._deadlines.add(deadline)
            try:
                yield
            finally:
                self._deadlines.discard(deadline)

    def _connect(self) -> _Connection:
        options = [
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # otherwise a new gRPC channel would use the old, dead connection
        ]
        if self._credentials is None:
            return _Connection(grpc.aio.insecure_channel(self._config.endpoint, options=options))
        return _Connection(grpc.aio.secure_channel(self._config.endpoint, self._credentials, options=options))


def _metadata(token: Token | None) -> tuple[tuple[str, str], ...]:
    return (token.metadata,) if token is not None else ()


def _certificates(config: FlyteAdminConfig) -> bytes | None:
    """Return the content of `ca_file`. Raises SettingsError if the file contains no certificate.

    The content is checked here because gRPC does not check it: with an invalid file, each connection would fail.
    """
    if config.ca_file is None:
        return None
    try:
        ssl.create_default_context(cafile=config.ca_file)
        return config.ca_file.read_bytes()
    except (OSError, ssl.SSLError) as error:
        words = getattr(error, "strerror", None) if not isinstance(error, ssl.SSLError) else None
        raise SettingsError(
            f"rules.flyte_admin.ca_file: {config.ca_file} holds no certificate: {words or 'PEM was expected'}"
        ) from None
