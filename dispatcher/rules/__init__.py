"""Decides who is notified of an event, and gives the reason for each rule.

`decide` makes the decision, without I/O; `RuleBook` has the launch plans' rules; `files` reads them from folders;
`AdminExecution` has the rules that FlyteAdmin gives for one execution.

Precedence, as in Flyte (flyteadmin `manager/impl/util`, flytekit `Options`): Options that disable notifications disable
every rule; otherwise a non-empty list in Options replaces the launch plan's rules; otherwise the launch plan's rules
apply.

Sources, each used only if the sources before it have no answer: the Options in the event itself; FlyteAdmin, which has
already applied this precedence to its executions; the launch plan files.
"""

from dispatcher.rules.admin_execution import AdminExecution, UnknownExecution
from dispatcher.rules.decide import Considered, Decision, Verdict, decide, decides_itself, disabled_by_of
from dispatcher.rules.rulebook import ANY, PlanKey, PlanRules, Rule, RuleBook

__all__ = [
    "ANY",
    "AdminExecution",
    "Considered",
    "Decision",
    "PlanKey",
    "PlanRules",
    "Rule",
    "RuleBook",
    "UnknownExecution",
    "Verdict",
    "decide",
    "decides_itself",
    "disabled_by_of",
]
