"""The HTTP side of the service: events come in at `events`, `health` tells how we are; `server` serves them."""
