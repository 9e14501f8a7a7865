"""Decides which rules match an event, and gives the reason for each rule.

`decide` makes the decision, without I/O. `RuleBook` contains the launch plans' rules, which `files` reads from folders.
`AdminExecution` contains the rules that FlyteAdmin gives for one execution.

Precedence, as in Flyte (flyteadmin `manager/impl/util`, flytekit `Options`): If the execution's Options disable
notifications, no rule applies. Otherwise, if the Options have a list of rules, this list replaces the launch plan's
rules. Otherwise the launch plan's rules apply.

The rules come from the first of these places that has an answer: the Options in the event itself; FlyteAdmin, which has
already applied this precedence; the launch plan files.
"""

from dispatcher.model.verdict import Verdict
from dispatcher.rules.admin_execution import AdminExecution, UnknownExecution
from dispatcher.rules.decide import Decision, decide, decides_itself, disabled_by_of
from dispatcher.rules.routes import Route, RouteBook
from dispatcher.rules.rule import Considered, Rule
from dispatcher.rules.rulebook import ANY, PlanKey, PlanRules, RuleBook

__all__ = [
    "ANY",
    "AdminExecution",
    "Considered",
    "Decision",
    "PlanKey",
    "PlanRules",
    "Route",
    "RouteBook",
    "Rule",
    "RuleBook",
    "UnknownExecution",
    "Verdict",
    "decide",
    "decides_itself",
    "disabled_by_of",
]
