"""The console's data as JSON, at `/api/v1`, and the OpenAPI document that describes it.

`operations` is the table from which both the routes and the document are made, so that they can't differ;
`models` is what goes in and out, `endpoints` what is done.
"""

from dispatcher.web.api.endpoints import Api

__all__ = ["Api"]
