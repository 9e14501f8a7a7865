"""The way of one event, and the module for each step.

    Kafka, HTTP     kafka, web          messages arrive (the seam is `source`)
    -> understand   decode              bytes become an Event, or the reason why not
    -> look up      flyte_admin         what the engine knows of the execution, and whom it would tell
    -> decide       rules               who is to be told, and why
    -> plan         plan, rendering     what is owed: messages with stable keys and finished content
    -> record       ledger              one transaction a batch; only then the offset is committed
    -> carry        courier, pacing     claim, send over a channel, judge, settle; at a pace that each destination bears
    -> send         channels            the transports, a package of their own

`intake` joins the steps up to the ledger, `reconcile` brings it what no message told, `service` wires everything;
intake and couriers share nothing but the ledger. The facts are in `event`, `phase` and `notification`; the state machine in `delivery`.
"""
