"""The verb that prints the JSON schema of harness.yaml: schema.

Invariant: stdout holds the schema and nothing else, so that it can be written to a file.
"""

from harness.cli.app import app, print_json


@app.command()
def schema() -> None:
    """Print the JSON schema of harness.yaml, for editors that complete and check its keys."""
    from harness.config import json_schema

    print_json(json_schema())
