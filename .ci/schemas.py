"""Writes JSON schemas for kubeconform, from Kubernetes' OpenAPI document and from CRDs.

Arguments: FOLDER SWAGGER CRD…; writes KIND-GROUP-VERSION.json into FOLDER. A schema with properties allows no other
properties, so that kubeconform finds misspelt fields.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

_INT_OR_STRING = {"type": ["string", "integer", "number"]}


def strict(schema: Any) -> Any:
    """The schema without additional properties, and with Kubernetes' extensions replaced by JSON Schema."""
    match schema:
        case list():
            return [strict(part) for part in schema]
        case {"format": "int-or-string"} | {"x-kubernetes-int-or-string": True}:
            return dict(_INT_OR_STRING)
        case dict():
            result = {name: strict(part) for name, part in schema.items() if not name.startswith("x-kubernetes")}
            closed = isinstance(result.get("properties"), dict) and "additionalProperties" not in result
            if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
                result["additionalProperties"] = False
            return result
        case _:
            return schema


def write(folder: Path, kind: str, group: str, version: str, schema: Any) -> None:
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], version)))
    (folder / f"{name}.json").write_text(json.dumps(schema))


def write_kubernetes_schemas(folder: Path, swagger: Path) -> None:
    definitions = strict(json.loads(swagger.read_text())["definitions"])
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = dict(_INT_OR_STRING)
    (folder / "kubernetes.json").write_text(json.dumps({"definitions": definitions}))
    for name, schema in json.loads(swagger.read_text())["definitions"].items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            reference = {"$ref": f"kubernetes.json#/definitions/{name}"}
            write(folder, kind["kind"], kind["group"], kind["version"], reference)


def write_crd_schemas(folder: Path, file: Path) -> None:
    spec = yaml.safe_load(file.read_text())["spec"]
    for version in spec["versions"]:
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        write(folder, spec["names"]["kind"], spec["group"], version["name"], schema)


def main() -> None:
    folder, swagger, *crds = map(Path, sys.argv[1:])
    write_kubernetes_schemas(folder, swagger)
    for file in crds:
        write_crd_schemas(folder, file)


main()
