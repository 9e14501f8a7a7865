"""JSON schemas for kubeconform: of Kubernetes' kinds from its OpenAPI document, of others from their CRDs.

FOLDER SWAGGER CRD…: writes KIND-GROUP-VERSION.json into the folder. No object may have a property that its schema
doesn't name, where it names any: a misspelt field is what these are for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

_NUMBER_TOO = {"type": ["string", "integer", "number"]}


def strict(schema: Any) -> Any:
    """The schema with its objects closed, and with Kubernetes' own words in JSON Schema's."""
    match schema:
        case list():
            return [strict(part) for part in schema]
        case {"format": "int-or-string"} | {"x-kubernetes-int-or-string": True}:
            return dict(_NUMBER_TOO)
        case dict():
            made = {name: strict(part) for name, part in schema.items() if not name.startswith("x-kubernetes")}
            named = isinstance(made.get("properties"), dict) and "additionalProperties" not in made
            if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
                made["additionalProperties"] = False
            return made
        case _:
            return schema


def write(folder: Path, kind: str, group: str, version: str, schema: Any) -> None:
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], version)))
    (folder / f"{name}.json").write_text(json.dumps(schema))


def of_kubernetes(folder: Path, swagger: Path) -> None:
    definitions = strict(json.loads(swagger.read_text())["definitions"])
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = dict(_NUMBER_TOO)
    (folder / "kubernetes.json").write_text(json.dumps({"definitions": definitions}))
    for name, schema in json.loads(swagger.read_text())["definitions"].items():
        for known in schema.get("x-kubernetes-group-version-kind", ()):
            reference = {"$ref": f"kubernetes.json#/definitions/{name}"}
            write(folder, known["kind"], known["group"], known["version"], reference)


def of_crd(folder: Path, file: Path) -> None:
    spec = yaml.safe_load(file.read_text())["spec"]
    for version in spec["versions"]:
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        write(folder, spec["names"]["kind"], spec["group"], version["name"], schema)


def main() -> None:
    folder, swagger, *crds = map(Path, sys.argv[1:])
    of_kubernetes(folder, swagger)
    for file in crds:
        of_crd(folder, file)


main()
