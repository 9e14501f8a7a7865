"""The one who asks FlyteAdmin: what became of an execution, and who is to be told of it.

Every question has a deadline. What may pass is asked again until then; after it FlyteAdminUnavailable is raised,
and intake waits. A clear no is an answer: Unresolved.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
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

from dispatcher.clock import Clock
from dispatcher.errors import FlyteAdminUnavailable, SettingsError
from dispatcher.flyte.admin.config import FlyteAdminConfig
from dispatcher.flyte.admin.errors import Denied, Failing, Passing, told
from dispatcher.flyte.admin.mapping import ended_between, ended_of, execution_of, rules_of
from dispatcher.flyte.admin.oauth import Doorway, Login, Token
from dispatcher.flyte.admin.single_flight import Merged
from dispatcher.model.event import EntityId, Event, ExecutionId
from dispatcher.rules import AdminExecution, Rule, UnknownExecution

log = structlog.get_logger(__name__)

PARALLEL = 100
"""Questions on their way at once; more wait. It is what proxies commonly allow on one connection."""
PLANS_KEPT = 2000
"""Launch plans remembered, those asked for last. A version of a launch plan never changes."""
CLOSE_SECONDS = 3
"""The deadline of every question while we are stopping."""
PAGE = 100
"""Executions or projects that a list brings at once."""
_LARGEST_ANSWER = 32 * 2**20

_Ask = Callable[[Any], Any]
"""One method of a service: takes a request and options, gives a call to await."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list of executions."""

    ended: Sequence[Event]
    following: str
    """The token of the next page; empty where this is the last."""


class _Connection:
    """A channel and Flyte's services over it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.doorkeeper = auth_pb2_grpc.AuthMetadataServiceStub(channel)


class FlyteAdmin:
    """A client of one FlyteAdmin; use it by `async with`."""

    def __init__(self, config: FlyteAdminConfig, clock: Clock) -> None:
        self._config = config
        self._credentials = None if config.insecure else grpc.ssl_channel_credentials(_certificates(config))
        self._login = Login(config, clock) if config.client_id else None
        self._slots = asyncio.Semaphore(PARALLEL)
        self._look_ups: Merged[ExecutionId, AdminExecution | UnknownExecution] = Merged()
        self._plans: OrderedDict[EntityId, tuple[Rule, ...]] = OrderedDict()
        self._plan_look_ups: Merged[EntityId, tuple[Rule, ...]] = Merged()
        self._seconds = config.timeout.total_seconds()
        self._limits: set[asyncio.Timeout] = set()
        self._connection = self._connect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.channel.close()

    def hurry(self) -> None:
        """We are stopping: questions on their way, and later ones, are soon given up."""
        self._seconds = min(self._seconds, CLOSE_SECONDS)
        soon = asyncio.get_running_loop().time() + self._seconds
        for limit in self._limits:
            limit.reschedule(min(limit.when() or soon, soon))

    async def look_up(self, execution: ExecutionId) -> AdminExecution | UnknownExecution:
        """What FlyteAdmin knows of an execution (`AdminService.GetExecution`).

        Raises FlyteAdminUnavailable where it can't be asked now, or doesn't let us in.
        """
        return await self._look_ups.ask(execution, lambda: self._look_up(execution))

    async def event(self, execution: ExecutionId) -> Event:
        """The last thing that happened to an execution, with its whole error.

        Raises FlyteAdminUnavailable, also where there is no such execution or it can't be understood.
        """
        try:
            message = await self._execution(execution)
            return execution_of(message).complete(ended_of(message))
        except Denied as no:
            raise FlyteAdminUnavailable(str(no)) from None

    async def trouble(self) -> str | None:
        """Why nothing can be asked, for the readiness page; None where all is well."""
        try:
            answer = await self._ask("GetVersion", version_pb2.GetVersionRequest(), "its version")
        except (FlyteAdminUnavailable, Denied) as error:
            return str(error)
        return None if answer is not None else f"{self._config.endpoint} answered what can't be understood"

    async def places(self) -> list[tuple[str, str]]:
        """Each project and domain that there is (`AdminService.ListProjects`).

        Raises FlyteAdminUnavailable, also where the list is denied.
        """
        found: list[tuple[str, str]] = []
        token = ""
        while True:
            request = project_pb2.ProjectListRequest(limit=PAGE, token=token)
            try:
                answer = await self._listed("ListProjects", request, "the list of projects")
            except Denied as no:
                raise FlyteAdminUnavailable(str(no)) from None
            found += [(project.id, domain.id) for project in answer.projects for domain in project.domains]
            if not answer.token or answer.token == token:
                return found
            token = answer.token

    async def ended(self, project: str, domain: str, *, since: datetime, until: datetime, token: str = "") -> Page:
        """One page of the executions of a project and domain that have ended and were last written in that time.

        Executions that can't be understood are left out, and so is a place that we may not list; the log says so.
        Raises FlyteAdminUnavailable.
        """
        request = common_pb2.ResourceListRequest(
            id=common_pb2.NamedEntityIdentifier(project=project, domain=domain),
            limit=PAGE,
            token=token,
            filters=ended_between(since, until),
            sort_by=common_pb2.Sort(key="created_at", direction=common_pb2.Sort.ASCENDING),
        )
        try:
            answer = await self._listed("ListExecutions", request, f"the executions of {project}/{domain}")
        except Denied as no:
            log.warning("executions can't be listed", project=project, domain=domain, reason=str(no))
            return Page((), "")
        ended = []
        for message in answer.executions:
            try:
                ended.append(ended_of(message))
            except Denied as error:
                log.warning("passed over", execution=message.id.name, reason=str(error))
        return Page(ended, answer.token if answer.token != token else "")

    async def _listed(self, method: str, request: Any, what: str) -> Any:
        answer = await self._ask(method, request, what)
        if answer is None:
            raise FlyteAdminUnavailable(f"{self._config.endpoint} answered what can't be understood to {what}")
        return answer

    async def _look_up(self, execution: ExecutionId) -> AdminExecution | UnknownExecution:
        async with self._slots:
            try:
                return await self._resolved(execution)
            except Denied as no:
                return UnknownExecution(str(no))
            except Failing as error:
                if not await self._answers_others():
                    raise
                # It would hold up everything behind it, for as long as this one question fails.
                return UnknownExecution(str(error))

    async def _execution(self, execution: ExecutionId) -> Any:
        request = execution_pb2.WorkflowExecutionGetRequest(
            id=identifier_pb2.WorkflowExecutionIdentifier(
                project=execution.project, domain=execution.domain, name=execution.name
            )
        )
        message = await self._ask("GetExecution", request, f"execution {execution}")
        if message is None or (message.id.project, message.id.domain, message.id.name) != (
            execution.project,
            execution.domain,
            execution.name,
        ):
            raise Denied(
                f"the answer of rules.flyte_admin.endpoint {self._config.endpoint} to execution {execution} "
                "can't be understood: it is no such Execution"
            )
        return message

    async def _resolved(self, execution: ExecutionId) -> AdminExecution:
        resolved = execution_of(await self._execution(execution))
        if resolved.launch_plan is not None and (resolved.own or resolved.disabled):
            return replace(resolved, replaced=await self._rules_of_plan(resolved.launch_plan))
        return resolved

    async def _rules_of_plan(self, plan: EntityId) -> tuple[Rule, ...]:
        """The launch plan's own rules, where they are replaced: only to explain it, so none where it is hidden."""
        if plan in self._plans:
            self._plans.move_to_end(plan)
            return self._plans[plan]
        return await self._plan_look_ups.ask(plan, lambda: self._ask_for_plan(plan))

    async def _ask_for_plan(self, plan: EntityId) -> tuple[Rule, ...]:
        identity = identifier_pb2.Identifier(
            resource_type=identifier_pb2.LAUNCH_PLAN,
            project=plan.project,
            domain=plan.domain,
            name=plan.name,
            version=plan.version,
        )
        try:
            answer = await self._ask("GetLaunchPlan", common_pb2.ObjectGetRequest(id=identity), f"launch plan {plan}")
        except (Denied, Failing) as error:
            log.warning("a launch plan's rules can't be shown", launch_plan=str(plan), reason=str(error))
            return ()
        if answer is None:
            return ()
        rules, _ = rules_of(answer.spec.entity_metadata.notifications, f"flyte_admin:{plan}")
        self._plans[plan] = rules
        if len(self._plans) > PLANS_KEPT:
            self._plans.popitem(last=False)
        return rules

    async def _answers_others(self) -> bool:
        """Whether FlyteAdmin, which failed at one execution, has its database and answers at all."""
        try:
            answer = await self._ask("ListProjects", project_pb2.ProjectListRequest(limit=1), "the list of projects")
        except (FlyteAdminUnavailable, Denied):
            return False
        return answer is not None

    async def _ask(self, method: str, request: Any, what: str) -> Any:
        """One question, asked again while there is hope; None where the answer is no such message.

        Raises Denied, or FlyteAdminUnavailable.
        """
        connection = self._connection  # held until the end: a channel that nobody holds any more hangs up
        last: list[BaseException] = []

        def remember(state: RetryCallState) -> None:
            if state.outcome is not None and (error := state.outcome.exception()) is not None:
                last[:] = [error]

        persistently = AsyncRetrying(
            retry=retry_if_exception_type(Passing),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            before_sleep=remember,
        )
        try:
            async with self._deadline():
                return await persistently(self._ask_once, connection, method, request, what)
        except TimeoutError:
            if self._login is not None and self._login.trouble is not None:  # the rest have waited for it in vain
                last = [self._login.trouble]
            if last:
                raise last[0] from None
            if self._connection is connection:
                # It may be dead without anybody knowing: later questions get a new one.
                self._connection = self._connect()
            raise Passing(
                f"rules.flyte_admin.endpoint: no answer from {self._config.endpoint} "
                f"within {self._seconds:g} s (rules.flyte_admin.timeout)"
            ) from None

    async def _ask_once(self, connection: _Connection, method: str, request: Any, what: str) -> Any:
        ask = getattr(connection.admin, method)
        find_doorway = partial(self._doorway, connection)
        token = await self._login.token(find_doorway) if self._login is not None else None
        try:
            return await ask(request, metadata=_metadata(token))
        except grpc.aio.AioRpcError as error:
            if self._login is None or error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise self._told(error, what) from None
        token = await self._login.token(find_doorway, fallback_for=token)
        try:
            return await ask(request, metadata=_metadata(token))
        except grpc.aio.AioRpcError as error:
            raise self._told(error, what) from None

    async def _doorway(self, connection: _Connection) -> Doorway:
        """How to log in. Asked anew with each token: it is seldom, and a move is noticed."""
        client = await self._ask_doorkeeper(
            connection.doorkeeper.GetPublicClientConfig, auth_pb2.PublicClientAuthConfigRequest()
        )
        endpoint = self._config.token_endpoint
        if endpoint is None:
            server = await self._ask_doorkeeper(
                connection.doorkeeper.GetOAuth2Metadata, auth_pb2.OAuth2MetadataRequest()
            )
            endpoint = server.token_endpoint if server is not None else ""
        if client is None:
            return Doorway(endpoint)
        key = client.authorization_metadata_key.lower() or "authorization"
        return Doorway(endpoint, tuple(client.scopes), client.audience, key)

    async def _ask_doorkeeper(self, ask: _Ask, request: Any) -> Any:
        """The answer, or None where there is no such service."""
        try:
            return await ask(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and "http" not in (error.details() or ""):
                return None
            said = self._told(error, "how to log in")
            raise FlyteAdminUnavailable(str(said)) if isinstance(said, Denied) else said from None

    def _told(self, error: grpc.aio.AioRpcError, what: str) -> Exception:
        return told(error, what, endpoint=self._config.endpoint, insecure=self._config.insecure)

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """Raises TimeoutError when a question has had its time."""
        async with asyncio.timeout(self._seconds) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    def _connect(self) -> _Connection:
        options = [
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.max_receive_message_length", _LARGEST_ANSWER),
            ("grpc.use_local_subchannel_pool", 1),  # or a new channel would be given the old, dead connection
        ]
        if self._credentials is None:
            return _Connection(grpc.aio.insecure_channel(self._config.endpoint, options=options))
        return _Connection(grpc.aio.secure_channel(self._config.endpoint, self._credentials, options=options))


def _metadata(token: Token | None) -> tuple[tuple[str, str], ...]:
    return (token.metadata,) if token is not None else ()


def _certificates(config: FlyteAdminConfig) -> bytes | None:
    """The certificates to trust. Raises SettingsError where the file holds none: gRPC would only fail to connect."""
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
