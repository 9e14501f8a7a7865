"""Who is to be told of an event, and why, and why not.

`decide` is the answer, pure; `RuleBook` holds the launch plans' rules; `files` reads them from a folder;
`AdminExecution` is what FlyteAdmin says.

Precedence, as Flyte keeps it (flyteadmin `manager/impl/util`, flytekit `Options`): Options that disable
notifications silence everything; else a non-empty list in Options replaces the launch plan's; else the
launch plan's rules hold.

Sources, each asked only where those before it have no answer: the Options that the event itself brings;
FlyteAdmin, which has resolved all of the above for its executions; the launch plan files.
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
