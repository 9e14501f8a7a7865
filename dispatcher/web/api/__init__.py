"""The API at `/api/v1`, which serves the console's data as JSON, and the OpenAPI document that describes the API.

`endpoints` defines a table of operations. The routes and the OpenAPI document are both generated from this table, so
they can't contradict each other. `models` defines the request and response bodies. `openapi` generates the route of an
operation and its part of the document.
"""

from dispatcher.web.api.endpoints import Api

__all__ = ["Api"]
