"""The steps from an event to a sent message, and the module of each step. docs/architecture.md has more.

    read        intake/kafka/consumer, web/event_intake       messages from Kafka and HTTP
    decode      flyte/decode                                  bytes become an Event, or the reason why not
    look up     flyte/admin/client                            the execution and its effective rules, from FlyteAdmin
    decide      rules/decide                                  which rules match, and why each other rule does not
    plan        planning/planner, rendering/renderer          deliveries with stable keys and rendered content
    record      ledger/ledger                                 one transaction per batch; then the offset is committed
    claim       ledger/claim                                  due deliveries that rate limits and circuit breakers admit
    send        delivering/attempt, channels/*/channel        one message; the result is a receipt or an error
    classify    model/delivery                                the outcome: sent, retry or dead
    settle      ledger/ledger                                 the outcome is stored if the worker still owns the lease

`intake/evaluator` runs the steps up to "plan", `intake/pipeline` those up to "record", and `intake/reconcile` adds the
events that never arrived. `runtime/parts` creates and connects all parts; `runtime/service` starts and stops them.
Intake and workers share only the ledger. The values Event, Phase, Notification and Delivery are in `model`.
"""
