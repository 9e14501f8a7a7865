"""Defines the table of the API's operations, and the endpoints that handle their requests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatcher.clock import Clock
from dispatcher.dry_run import DryRun
from dispatcher.explain import cause_data, delivery_data, delivery_with_history, event_data, explanations
from dispatcher.filters import CauseSearch, LaunchPlanQuestion, RejectedSearch, RouteSearch, Search, unknown_names
from dispatcher.ledger import Deed, Filter, Ledger
from dispatcher.ledger.records import Activity, Page
from dispatcher.model.event import ExecutionId
from dispatcher.operations import Operations, Operator
from dispatcher.silences import SilenceOperations
from dispatcher.web.activity_stream import ActivityStream
from dispatcher.web.api import models
from dispatcher.web.api.openapi import ApiRequest, Operation, Problem, document
from dispatcher.web.api.silences import SilenceEndpoints
from dispatcher.web.auth.access import caller, needs, still_allowed
from dispatcher.web.config import Scope
from dispatcher.web.send_test import SendTestForCallers, SendTestRefused, SendTestRequest

ROOT = "/api/v1"
RANGES = {"1h": (timedelta(hours=1), 12), "24h": (timedelta(hours=24), 24), "7d": (timedelta(days=7), 28)}
"""The time ranges that a chart can show. Maps a name to the length of the range and its number of time buckets."""
DELIVERIES_AT_MOST = 500
"""Maximum number of deliveries that the API and the console show for one execution."""
OWNERS_AT_MOST = 500
"""Maximum number of unresolved owners that the API shows."""
_CHANGES = (
    (Deed.REDRIVE, "redriveDeliveries", "Make dead deliveries due again, with a full retry budget."),
    (Deed.RETRY_NOW, "retryDeliveriesNow", "Make waiting deliveries due now, with the back-off from its start."),
    (Deed.CANCEL, "cancelDeliveries", "Drop waiting deliveries that no worker is sending."),
    (Deed.DISMISS, "dismissDeliveries", "Drop dead deliveries that nobody needs any more."),
)
_Parsed = TypeVar("_Parsed")


class Api:
    """The API's endpoints. They read through the ledger's queries, and they redrive and replay through `Operations`."""

    def __init__(
        self,
        ledger: Ledger,
        operations: Operations,
        activity_stream: ActivityStream,
        clock: Clock,
        channels: Collection[str],
        dry_run: DryRun,
        send_test: SendTestForCallers,
        *,
        base_path: str = "",
    ) -> None:
        """`channels`: the names of all channels that there are."""
        self._ledger = ledger
        self._operations = operations
        self._activity_stream = activity_stream
        self._clock = clock
        self._channels = channels
        self._dry_run = dry_run
        self._send_test = send_test
        silences = SilenceOperations(ledger, clock, asks_flyte_admin=dry_run.admin is not None)
        self._endpoints = [*self._table(), *SilenceEndpoints(silences).table()]
        self._document = orjson.dumps(document(self._endpoints, base_path=base_path, root=ROOT))

    @property
    def routes(self) -> list[Route]:
        openapi = Route(f"{ROOT}/openapi.json", needs(Scope.READ, self._openapi))
        return [*(operation.route(ROOT) for operation in self._endpoints), openapi]

    def _table(self) -> list[Operation]:
        read, operate = Scope.READ, Scope.OPERATE
        return [
            Operation(
                method="GET",
                path="/status",
                name="status",
                summary="Numbers of waiting and dead deliveries and rejected messages.",
                scope=read,
                endpoint=self._status,
                response=models.Status,
            ),
            Operation(
                method="GET",
                path="/replicas",
                name="listReplicas",
                summary="How each replica is: its components, circuit breakers, unread messages and clock.",
                scope=read,
                endpoint=self._replicas,
                response=models.Replicas,
            ),
            Operation(
                method="GET",
                path="/unresolved-owners",
                name="listUnresolvedOwners",
                summary="Whose executions have no known owner, or one who can't be reached, for routes that name owner.",
                scope=read,
                endpoint=self._unresolved_owners,
                response=models.UnresolvedOwners,
            ),
            Operation(
                method="GET",
                path="/lag",
                name="lag",
                summary="Outcomes and lags over time.",
                scope=read,
                endpoint=self._lag,
                response=models.Lag,
                query=models.LagParameters,
            ),
            Operation(
                method="GET",
                path="/executions",
                name="listExecutions",
                summary="Terminal events of executions, with the verdict on each.",
                scope=read,
                endpoint=self._executions,
                response=models.Executions,
                query=Search,
            ),
            Operation(
                method="GET",
                path="/causes",
                name="listCauses",
                summary="The most frequent causes of failed executions, with their number.",
                scope=read,
                endpoint=self._causes,
                response=models.Causes,
                query=CauseSearch,
            ),
            Operation(
                method="GET",
                path="/executions/{project}/{domain}/{name}",
                name="explainExecution",
                summary="Why people were notified of an execution, or were not.",
                scope=read,
                endpoint=self._explain,
                response=models.ExecutionExplanation,
                problems=(404,),
            ),
            Operation(
                method="GET",
                path="/deliveries",
                name="listDeliveries",
                summary="Deliveries: waiting, sent, dead or dropped, with the reason.",
                scope=read,
                endpoint=self._deliveries,
                response=models.Deliveries,
                query=Search,
            ),
            *(
                Operation(
                    method="POST",
                    path=f"/deliveries/{what.replace('_', '-')}",
                    name=name,
                    summary=summary,
                    scope=operate,
                    endpoint=partial(self._change, what),
                    response=models.ChangeResult,
                    body=models.ChangeByKeys | models.ChangeByFilter,
                    problems=(413, 415),
                )
                for what, name, summary in _CHANGES
            ),
            Operation(
                method="GET",
                path="/deliveries/{key}",
                name="getDelivery",
                summary="A delivery with its content and each attempt with the provider's answer, and the operators' actions.",
                scope=read,
                endpoint=self._delivery,
                response=models.DeliveryDetails,
                problems=(404,),
            ),
            Operation(
                method="GET",
                path="/rules/who",
                name="whoIsNotified",
                summary="Who would be notified of a launch plan's executions, and why, by today's rules.",
                scope=read,
                endpoint=self._who,
                response=models.LaunchPlanForecast,
                query=LaunchPlanQuestion,
            ),
            Operation(
                method="GET",
                path="/routes",
                name="listRoutes",
                summary="The routes in effect, in the order in which they apply.",
                scope=read,
                endpoint=self._routes_in_effect,
                response=models.Routes,
                query=RouteSearch,
            ),
            Operation(
                method="GET",
                path="/contacts",
                name="listContacts",
                summary="The contacts in the settings.",
                scope=read,
                endpoint=self._contacts,
                response=models.Contacts,
            ),
            Operation(
                method="GET",
                path="/rejected",
                name="listRejected",
                summary="Messages that could not be read, or whose rules are unknown.",
                scope=read,
                endpoint=self._rejected,
                response=models.RejectedMessages,
                query=RejectedSearch,
            ),
            Operation(
                method="GET",
                path="/rejected/{id}",
                name="getRejected",
                summary="A rejected message with the reason, its headers and the stored part of its body.",
                scope=read,
                endpoint=self._rejected_message,
                response=models.RejectedMessageDetails,
                problems=(404,),
            ),
            Operation(
                method="POST",
                path="/rejected/{id}/replay",
                name="replayRejected",
                summary="Process a rejected message again with the current rules and decoder.",
                scope=operate,
                endpoint=self._replay,
                response=models.ReplayResult,
                query=models.Reason,
                problems=(404, 409),
            ),
            Operation(
                method="POST",
                path="/send-test",
                name="sendTest",
                summary="Send one real message, marked as a test. Without `operate`, only to a recipient of a rule.",
                scope=read,
                endpoint=self._send_test_message,
                response=models.SendTestOutcome,
                body=SendTestRequest,
                problems=(404, 413, 415),
            ),
            Operation(
                method="POST",
                path="/rejected/{id}/dismiss",
                name="dismissRejected",
                summary="Note that nobody needs the notifications of a rejected message.",
                scope=operate,
                endpoint=self._dismiss_rejected,
                response=models.DismissResult,
                query=models.Reason,
                problems=(404, 409),
            ),
            Operation(
                method="GET",
                path="/stream",
                name="stream",
                summary="Activity as server-sent events `event`, `attempt` and `rejected`; Last-Event-ID resumes it.",
                scope=read,
                endpoint=self._stream,
                response=None,
            ),
        ]

    async def _status(self, _: ApiRequest) -> BaseModel:
        return models.Status.model_validate(await self._ledger.queries.status())

    async def _replicas(self, _: ApiRequest) -> BaseModel:
        return models.Replicas(replicas=await self._ledger.replicas.all())

    async def _unresolved_owners(self, _: ApiRequest) -> BaseModel:
        return models.UnresolvedOwners(owners=await self._ledger.owners.unresolved(limit=OWNERS_AT_MOST))

    async def _lag(self, request: ApiRequest) -> BaseModel:
        length, number = RANGES[request.query.range]
        now = self._clock.now()
        time_buckets = await self._ledger.queries.time_buckets(now - length, now, number=number)
        return models.Lag(time_buckets=[models.LagBucket.of(bucket) for bucket in time_buckets])

    async def _executions(self, request: ApiRequest) -> BaseModel:
        search: Search = request.query
        wanted, after = _parsed(lambda: (search.wanted(now=self._clock.now()), search.cursor))
        page = await self._ledger.queries.events(wanted, limit=search.limit, after=after)
        return models.Executions.of(page, event_data, await self._hints(page, wanted))

    async def _causes(self, request: ApiRequest) -> BaseModel:
        search: CauseSearch = request.query
        wanted = _parsed(lambda: search.wanted(now=self._clock.now()))
        page = await self._ledger.causes.most_frequent(wanted, limit=search.limit)
        since = page.after.at if page.after is not None else None
        return models.Causes.model_validate({"causes": [cause_data(one) for one in page.entries], "since": since})

    async def _explain(self, request: ApiRequest) -> BaseModel:
        path = {name: request.path[name] for name in ("project", "domain", "name")}
        try:
            execution = ExecutionId(**path)
        except ValidationError:
            raise Problem(404, "there can be no such execution") from None
        rejected = await self._ledger.rejected.of_executions([execution])
        explained = await explanations(
            self._ledger, execution, rejected, deliveries_at_most=DELIVERIES_AT_MOST, now=self._clock.now()
        )
        if not explained:
            raise Problem(404, f"nothing is recorded of {execution}")
        return models.ExecutionExplanation.of(path, explained)

    async def _deliveries(self, request: ApiRequest) -> BaseModel:
        search: Search = request.query
        now = self._clock.now()
        wanted, after = _parsed(lambda: (search.wanted(now=now), search.cursor))
        page = await self._ledger.queries.deliveries(wanted, limit=search.limit, after=after)
        page = replace(page, entries=await self._ledger.queries.with_waits(page.entries, now=now))
        return models.Deliveries.of(page, delivery_data, await self._hints(page, wanted))

    async def _hints(self, page: Page[Any], wanted: Filter) -> Sequence[str]:
        return () if page.entries else await unknown_names(self._ledger, wanted, self._channels)

    async def _delivery(self, request: ApiRequest) -> BaseModel:
        key = request.path["key"]
        stored = await self._ledger.history.delivery(key)
        if stored is None:
            raise Problem(404, "no such delivery; a key has 32 digits")
        details = await delivery_with_history(self._ledger, stored, now=self._clock.now())
        return models.DeliveryDetails.model_validate({**details, "content": stored.delivery.content})

    async def _change(self, what: Deed, request: ApiRequest) -> BaseModel:
        wanted = _parsed(lambda: self._change_filter(request.body))
        silenced = await self._operations.silenced(what, wanted)
        if request.body.dry_run:
            count = await self._operations.count(what, wanted)
            return models.ChangeResult(
                deliveries=count.number, more=count.more, dry_run=True, silenced=silenced, waits_for=[]
            )
        number = await self._operations.change(what, wanted, Operator(caller(request.http), request.body.reason))
        waits = await self._operations.waits(wanted) if number and what is Deed.RETRY_NOW else ()
        waits_for = [models.DeliveriesWait.model_validate({**asdict(wait), "deliveries": n}) for wait, n in waits]
        return models.ChangeResult(
            deliveries=number, more=False, dry_run=False, silenced=min(silenced, number), waits_for=waits_for
        )

    def _change_filter(self, body: models.ChangeByKeys | models.ChangeByFilter) -> Filter:
        match body:
            case models.ChangeByKeys(keys=keys):
                return Filter(keys=keys)
            case models.ChangeByFilter(filter=criteria):
                return criteria.wanted(now=self._clock.now())

    async def _who(self, request: ApiRequest) -> BaseModel:
        question: LaunchPlanQuestion = request.query
        plan = _parsed(lambda: question.plan)
        forecast = await self._dry_run.of_launch_plan(plan, question.phases)
        return models.LaunchPlanForecast.model_validate(forecast.as_data())

    async def _routes_in_effect(self, request: ApiRequest) -> BaseModel:
        search: RouteSearch = request.query
        book = self._dry_run.rules().routes
        page = _parsed(lambda: search.page(book, self._dry_run.planner.contacts))
        entries = [route.as_data() for route in page.entries]
        return models.Routes.model_validate({"entries": entries, "next": page.next, "total": len(book)})

    async def _contacts(self, _: ApiRequest) -> BaseModel:
        return models.Contacts.model_validate({"contacts": self._dry_run.planner.contacts.as_data()})

    async def _rejected(self, request: ApiRequest) -> BaseModel:
        search: RejectedSearch = request.query
        after = _parsed(lambda: search.cursor)
        page = await self._ledger.queries.rejected(limit=search.limit, after=after, replayed=search.replayed)
        return models.RejectedMessages.of(page)

    async def _rejected_message(self, request: ApiRequest) -> BaseModel:
        entry = await self._operations.rejected(request.path["id"])
        if entry is None:
            raise Problem(404, "no such rejected message")
        return models.RejectedMessageDetails.of_stored(entry)

    async def _replay(self, request: ApiRequest) -> BaseModel:
        entry = await self._operations.rejected(request.path["id"])
        if entry is None:
            raise Problem(404, "no such rejected message")
        if entry.replayed_at is not None:
            raise Problem(409, "it was replayed already")
        result = await self._operations.replay(entry, Operator(caller(request.http), request.query.reason))
        return models.ReplayResult(id=entry.id, accepted=result.accepted, message=result.message)

    async def _send_test_message(self, request: ApiRequest) -> BaseModel:
        operates = still_allowed(request.http, Scope.OPERATE)
        try:
            result = await self._send_test.send(request.body, caller=caller(request.http), operates=operates)
        except SendTestRefused as error:
            raise Problem(error.status, str(error)) from None
        return models.SendTestOutcome.model_validate(asdict(result))

    async def _dismiss_rejected(self, request: ApiRequest) -> BaseModel:
        entry = await self._operations.rejected(request.path["id"])
        if entry is None:
            raise Problem(404, "no such rejected message")
        by = Operator(caller(request.http), request.query.reason)
        if not await self._operations.dismiss_rejected([entry.id], by):
            raise Problem(409, "it was replayed or dismissed already")
        return models.DismissResult(id=entry.id)

    async def _stream(self, request: ApiRequest) -> Response:
        last = request.http.headers.get("last-event-id")
        allowed = partial(still_allowed, request.http, Scope.READ)
        response = _parsed(lambda: self._activity_stream.response(_data, after=last, allowed=allowed))
        if response is None:
            raise Problem(503, "too many clients are listening already", headers={"Retry-After": "30"})
        return response

    async def _openapi(self, _: Request) -> Response:
        return Response(self._document, media_type="application/json")


def _parsed(parse: Callable[[], _Parsed]) -> _Parsed:
    """Return the result of `parse`. If `parse` finds an invalid time or cursor, the client gets status 400."""
    try:
        return parse()
    except ValueError as error:
        raise Problem(400, str(error)) from None


def _data(activity: Activity) -> str:
    return orjson.dumps({"at": activity.at, **activity.details}).decode()
