"""The console's data as JSON, at `/api/v1`, and the OpenAPI document that describes it.

`endpoints` has the table of operations, from which both the routes and the document are generated, so that they can't
differ. `models` has the request and response bodies, `openapi` turns an operation into a route and a document.
"""

from dispatcher.web.api.endpoints import Api

__all__ = ["Api"]
