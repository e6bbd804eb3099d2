"""Make the items of the default capability suite and of the safety suite.

Invariant: the same seed gives the same bytes; run it again after a change of `generators/`,
with another seed (and folder) for a fresh pool.

    python suites/make_general.py [--seed 0] [--out suites]
"""

import argparse
from pathlib import Path

from generators import (
    arithmetic,
    arithmetic_words,
    chat_facts,
    chat_text,
    code_text,
    grammar,
    instructions,
    prose_text,
    reading,
    safety,
    translation,
    world_facts,
)
from generators.rows import write

GENERAL = (
    world_facts, reading, grammar, arithmetic, chat_facts, instructions, arithmetic_words, translation,
    prose_text, code_text, chat_text,
)  # fmt: skip


def make(out: Path, seed: int) -> None:
    """Write one file a task under `general/` and `safety/`."""
    for module in GENERAL:
        write(out / "general" / f"{module.__name__.rsplit('.', 1)[-1]}.jsonl", module.items(seed))
    for name, rows in safety.items().items():
        write(out / "safety" / f"{name}.jsonl", rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    make(arguments.out, arguments.seed)
