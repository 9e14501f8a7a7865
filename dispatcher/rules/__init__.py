"""Who is to be told of an event, and why, and why not.

`decide` is the answer, pure; `RuleBook` holds the launch plans' rules; `files` reads them from a folder.

Precedence, as Flyte keeps it (flyteadmin `manager/impl/util`, flytekit `Options`): Options that disable
notifications silence everything; else a non-empty list in Options replaces the launch plan's; else the
launch plan's rules hold.
"""

from dispatcher.rules.decide import Considered, Decision, Verdict, decide
from dispatcher.rules.rulebook import ANY, PlanKey, PlanRules, Rule, RuleBook

__all__ = ["ANY", "Considered", "Decision", "PlanKey", "PlanRules", "Rule", "RuleBook", "Verdict", "decide"]
