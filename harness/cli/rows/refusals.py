"""Refusals that commands share by which models write rows: no file, a grid, draws that are none.

Invariant: each is said before anything is asked.
"""

from collections.abc import Collection
from pathlib import Path

from harness.errors import Problem, UserError


def require_out(out: Path | None, command: str, example: str) -> Path:
    """Return the file to write."""
    if out is None:
        raise UserError(Problem(command, "no --out", "a new file", f"name it: --out {example}"))
    return out


def refuse_grid(name: str, known: Collection[str], command: str) -> None:
    """Refuse the name of a grid, which stands for several candidates."""
    if name not in known:
        members = [one for one in known if one.startswith(f"{name}[")]
        found = f"{name}, a grid of {len(members)} candidates"
        raise UserError(Problem(command, found, "one candidate", f"one of: {', '.join(members)}"))


def refuse_draws(temperature: float, top_p: float, *, greedy: bool = False) -> None:
    """Refuse draws that are none; with `greedy` a temperature of 0 is taken.

    Raises:
        UserError: the temperature is not above 0, or no tokens could be drawn.
    """
    if not (0 < temperature < float("inf") or (greedy and temperature == 0)):
        expected = "0 or a number above it" if greedy else "a number above 0"
        raise UserError(Problem("--temperature", f"{temperature:g}", expected, "at 0 all answers are one"))
    if not 0 < top_p <= 1:
        raise UserError(Problem("--top-p", f"{top_p:g}", "above 0 and at most 1", "1 draws from all tokens"))
