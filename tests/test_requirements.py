"""What `make` installs by its hash is what is pinned."""

import re

from hashes import CONSTRAINTS, HASHED, MODELS, pins, wanted_pins


def test_every_pin_that_is_installed_has_a_hash_and_the_version_of_the_constraints():
    blocks = re.split(r"\n(?=\w)", HASHED.read_text())[1:]
    assert {name: version for block in blocks for name, version in pins(block).items()} == wanted_pins()
    assert [block for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}", block)] == []
    assert {*wanted_pins()} - {*pins("\n".join(MODELS))} == {*pins(CONSTRAINTS.read_text())} - {"torch"}
