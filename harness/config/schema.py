"""The JSON schema of harness.yaml, for editors.

Invariant: it describes what may be written, short forms included, not what they become.
"""

from typing import Any

from harness.spec import Experiment, Suite

_PATH = {"type": "string", "description": "a file, relative to harness.yaml"}


def json_schema() -> dict[str, Any]:
    """Return the schema of what harness.yaml may hold."""
    schema = Experiment.model_json_schema()
    definitions, properties = schema["$defs"], schema["properties"]
    definitions["Suite"] = definitions.get("Suite") or Suite.model_json_schema()
    properties["target"] = {"anyOf": [_PATH, _ref("Task"), _ref("Suite")]}
    properties["suites"]["items"] = {"anyOf": [_PATH, _ref("Suite")]}
    recipe = {"type": "string", "description": "the name of a recipe in baselines/"}
    properties["candidates"]["additionalProperties"] = {"anyOf": [recipe, _ref("Recipe"), {"type": "null"}]}
    params = {"anyOf": [{"type": "object"}, {"type": "null"}]}
    prompting = definitions["Recipe"]["properties"]["prompting"]
    prompting["anyOf"] = [{"type": "string"}, {"type": "object", "additionalProperties": params}]
    prompting.pop("type"), prompting.pop("additionalProperties")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}
