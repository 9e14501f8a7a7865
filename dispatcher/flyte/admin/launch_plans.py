"""Asks FlyteAdmin for the rules of launch plans."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from flyteidl.admin import common_pb2, launch_plan_pb2
from flyteidl.core import identifier_pb2

from dispatcher.flyte.admin.errors import PermanentError, ServerError
from dispatcher.flyte.admin.mapping import entity_of, excess_of, rules_of
from dispatcher.flyte.admin.single_flight import SingleFlight
from dispatcher.model.event import EntityId
from dispatcher.rules import AdminExecution, Rule, UnknownExecution

log = structlog.get_logger(__name__)

CACHE_SIZE = 2000
"""Maximum number of launch plans in the cache. A full cache drops the least recently used launch plan.

Cached rules never become outdated, because a version of a launch plan never changes.
"""
Call = Callable[[str, Any, str], Awaitable[Any]]
"""Calls a method of AdminService with a request, and with what is asked for, for messages. Returns None if the answer
can't be understood. Raises PermanentError or FlyteAdminUnavailable."""


class LaunchPlans:
    """The launch plans of one FlyteAdmin, with a cache of their rules."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._cache: OrderedDict[EntityId, tuple[Rule, ...]] = OrderedDict()
        self._look_ups: SingleFlight[EntityId, tuple[Rule, ...]] = SingleFlight()

    async def rules(self, plan: EntityId) -> tuple[Rule, ...]:
        """Return the rules of a version of a launch plan, which an execution overrides. Only `explain` shows them.

        Returns no rules if FlyteAdmin refuses the request or answers with an internal error, or if there are more than
        an event may have.
        """
        if plan in self._cache:
            self._cache.move_to_end(plan)
            return self._cache[plan]
        return await self._look_ups.run(plan, lambda: self._read_rules(plan))

    async def _read_rules(self, plan: EntityId) -> tuple[Rule, ...]:
        try:
            answer = await self._get(plan)
        except (PermanentError, ServerError) as error:
            log.warning("a launch plan's rules can't be read", launch_plan=str(plan), reason=str(error))
            return ()
        if answer is None:
            return ()
        self._cache[plan] = rules = _as_execution(answer).rules
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return rules

    async def find(self, plan: EntityId) -> AdminExecution | UnknownExecution:
        """Return what an execution of the launch plan would get if it started now without rules of its own.

        Without a version, this is the active version, or else the newest one. Raises FlyteAdminUnavailable.
        """
        try:
            answer = await (self._get(plan) if plan.version else self._active_or_newest(plan))
        except PermanentError as error:
            return UnknownExecution(str(error))
        if answer is None:
            return UnknownExecution(f"FlyteAdmin knows no launch plan {plan}")
        return _as_execution(answer)

    async def _get(self, plan: EntityId) -> Any:
        identity = identifier_pb2.Identifier(
            resource_type=identifier_pb2.LAUNCH_PLAN,
            project=plan.project,
            domain=plan.domain,
            name=plan.name,
            version=plan.version,
        )
        return await self._call("GetLaunchPlan", common_pb2.ObjectGetRequest(id=identity), f"launch plan {plan}")

    async def _active_or_newest(self, plan: EntityId) -> Any:
        """Return the launch plan in its active version, or else in its newest one; None if there is no version."""
        identity = common_pb2.NamedEntityIdentifier(project=plan.project, domain=plan.domain, name=plan.name)
        what = f"launch plan {plan}"
        try:
            return await self._call("GetActiveLaunchPlan", launch_plan_pb2.ActiveLaunchPlanRequest(id=identity), what)
        except PermanentError:  # no version is active
            newest = common_pb2.Sort(key="created_at", direction=common_pb2.Sort.DESCENDING)
            request = common_pb2.ResourceListRequest(id=identity, limit=1, sort_by=newest)
            answer = await self._call("ListLaunchPlans", request, what)
            return next(iter(answer.launch_plans), None) if answer is not None else None


def _as_execution(message: Any) -> AdminExecution:
    """Convert a `flyteidl.admin.LaunchPlan` into the rules of an execution that has none of its own."""
    identity = message.id
    plan = EntityId(project=identity.project, domain=identity.domain, name=identity.name, version=identity.version)
    notifications = message.spec.entity_metadata.notifications
    too_many = excess_of(notifications)
    rules, refused = rules_of(() if too_many else notifications, f"flyte_admin:{plan}")
    workflow = entity_of(message.spec.workflow_id)
    return AdminExecution(launch_plan=plan, workflow=workflow, rules=rules, refused=refused, excess=too_many)
