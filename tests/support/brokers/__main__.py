"""Start a broker and say where it listens, until interrupted: `python -m tests.support.brokers`."""

from __future__ import annotations

import signal

from tests.support.brokers import choose
from tests.support.brokers.apache import PASSWORD, USERNAME, ApacheKafka


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with choose().running() as broker:
            print(f"{broker.name}: {broker.bootstrap_servers}", flush=True)
            if isinstance(broker, ApacheKafka):
                _tell_of_locks(broker)
            signal.pause()
    except KeyboardInterrupt:
        print("stopped")


def _tell_of_locks(broker: ApacheKafka) -> None:
    certificate, key = broker.client_files
    print(f"SSL:            {broker.listener('SSL')}, cert_file: {certificate}, key_file: {key}")
    print(f"SASL_PLAINTEXT: {broker.listener('SASL_PLAINTEXT')}, username: {USERNAME}, password: {PASSWORD}")
    print(f"SASL_SSL:       {broker.listener('SASL_SSL')}, the same user")
    print(f"ca_file:        {broker.ca_file}", flush=True)


if __name__ == "__main__":
    main()
