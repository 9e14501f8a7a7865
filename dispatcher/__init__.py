"""The steps from an event to a sent message, and the module of each step. docs/architecture.md has more.

    read        intake/kafka/consumer, web/event_intake       Kafka and HTTP give messages
    decode      flyte/decode                                  bytes become an Event, or the reason why not
    look up     flyte/admin/client                            what FlyteAdmin knows of the execution, and its rules
    decide      rules/decide                                  the rules that match, and why the others do not
    plan        planning/planner, rendering/renderer          deliveries with stable keys and rendered content
    record      ledger/ledger                                 one transaction per batch; then the offset is committed
    claim       ledger/claim                                  due deliveries that rate limits and circuit breakers admit
    send        delivering/worker, channels/*/channel         one message; a receipt, or an error that says what is next
    classify    model/delivery                                the outcome: sent, retry or dead
    settle      ledger/ledger                                 the outcome is stored if the worker still has the lease

`intake/pipeline` joins the steps up to the ledger, `intake/reconcile` adds the events that never arrived, and
`runtime/service` wires everything. Intake and workers share nothing but the ledger. Event, phase, notification and
delivery are values in `model`.
"""
