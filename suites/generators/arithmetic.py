"""Arithmetic: small sums, differences and sequences with four answers.

Invariant: the worked lines before a question never hold its own operands or its answer.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from generators.rows import Row, choice_row, place_gold, unique


class Problem(NamedTuple):
    """A line to complete, its answer, and the cluster of lines like it."""

    line: str
    answer: int
    cluster: str


def addition(r: random.Random) -> Problem:
    """Add two numbers with a sum of at most 20."""
    a, b = r.randint(1, 10), r.randint(1, 10)
    return Problem(f"{a} + {b} =", a + b, f"addition-{max(a, b)}")


def subtraction(r: random.Random) -> Problem:
    """Take a number from another of at most 20."""
    b, rest = r.randint(1, 10), r.randint(1, 10)
    return Problem(f"{b + rest} - {b} =", rest, f"subtraction-{b + rest}")


def sequence(r: random.Random) -> Problem:
    """Continue a sequence of equal steps."""
    start, step = r.randint(1, 30), r.choice([1, 2, 3, 5, 10])
    terms = ", ".join(str(start + i * step) for i in range(4))
    return Problem(f"{terms},", start + 4 * step, f"sequence-{step}-{start % 3}")


def tens(r: random.Random) -> Problem:
    """Add whole tens."""
    a, b = 10 * r.randint(1, 9), 10 * r.randint(1, 9)
    return Problem(f"{a} + {b} =", a + b, f"tens-{max(a, b)}")


KINDS: tuple[Callable[[random.Random], Problem], ...] = (addition, subtraction, sequence, tens)
POOL_OF = {"addition": 95, "subtraction": 95, "sequence": 145, "tens": 78}
N_SHOWN = 2


def items(seed: int) -> list[Row]:
    """Make the problems of every kind, each after three worked ones of its kind."""
    rng = random.Random(f"arithmetic-{seed}")
    rows: list[Row] = []
    for kind in KINDS:
        asked: dict[str, Problem] = {}
        while len(asked) < POOL_OF[kind.__name__]:
            problem = kind(rng)
            asked[problem.line] = problem
        rows += [row(kind, i, asked[line], rng) for i, line in enumerate(sorted(asked))]
    return place_gold(unique(rows), rng)


def row(kind: Callable[[random.Random], Problem], i: int, problem: Problem, rng: random.Random) -> Row:
    """Show worked problems, then this one with answers near the right one."""
    near = [problem.answer + d for d in (-10, -3, -2, -1, 1, 2, 3, 10)]
    step = 10 if kind is tens else 1
    wrong = [n for n in near if n > 0] if step == 1 else [problem.answer + d for d in (-20, -10, 10, 20)]
    wrong = rng.sample([n for n in wrong if n > 0], 3)
    prompt = "\n".join([*shown(kind, problem, rng), problem.line])
    return choice_row(
        f"{kind.__name__}-{i:03d}", prompt, str(problem.answer), [str(n) for n in wrong], problem.cluster
    )


def shown(kind: Callable[[random.Random], Problem], asked: Problem, rng: random.Random) -> list[str]:
    """Draw worked problems of the kind with other answers than the one asked."""
    answers: dict[int, Problem] = {}
    while len(answers) < N_SHOWN:
        other = kind(rng)
        if other.answer != asked.answer:
            answers[other.answer] = other
    return [f"{other.line} {other.answer}" for other in answers.values()]
