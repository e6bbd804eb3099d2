"""Schema of the rows that a candidate trains on in place of the target's.

Invariant: the short form of a mixture, files with their weights, and what it stands for are the same.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator

from harness.spec.values import Spec, rule


class Mix(Spec):
    """Mixture of files that a candidate trains on, drawn by the experiment's first seed.

    `files` maps each file to its share of the rows, above 0 and together 1; of a list of files the shares
    are by their numbers of rows to the power of 1 / `temperature`. `rows` is how many are drawn, by default
    the most that no file is too small for. `replacement` draws a row as often as it comes.
    """

    files: dict[str, float] | tuple[str, ...]
    temperature: float | None = Field(None, gt=0)
    rows: int | None = Field(None, ge=1)
    replacement: bool = False

    @model_validator(mode="before")
    @classmethod
    def _expand_files(cls, data: Any) -> Any:
        return {"files": data} if isinstance(data, dict) and data and "files" not in data else data

    @rule
    def _check_shares(self) -> Iterator[str]:
        if len(set(self.files)) < 2 or len(set(self.files)) < len(self.files):
            yield "a mixture needs two files or more, each once"
        if isinstance(self.files, dict):
            if self.temperature is not None:
                yield "shares of files and a temperature: leave one out"
            total = sum(self.files.values())
            if any(not share > 0 for share in self.files.values()):
                yield "a share that is not above 0"
            elif abs(total - 1) > 1e-6:
                even = ", ".join(f"{share / total:.4g}" for share in self.files.values())
                yield f"shares that add up to {total:g}, not to 1: perhaps {even}"
        if self.replacement and self.rows is None:
            yield "replacement without rows: say how many to draw"

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, in the order in which they are written."""
        return tuple(self.files)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The shares of the files; None where their sizes decide."""
        return tuple(self.files.values()) if isinstance(self.files, dict) else None
