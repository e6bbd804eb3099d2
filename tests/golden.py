"""Published reference values, or values computed in two ways, each with its tolerance."""

import json
from pathlib import Path

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def golden(name):
    return GOLDEN[name]["value"], GOLDEN[name]["tolerance"]
