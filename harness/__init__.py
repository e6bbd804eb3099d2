"""Know, with evidence, whether to fine-tune.

Invariant: importing the package costs nothing; `compare`, `gate` and `frames` load their modules on first
use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.experiment import compare
    from harness.lifecycle.release import gate_candidate as gate
    from harness.store import frames

__all__ = ["__version__", "compare", "frames", "gate"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "compare":
        from harness.experiment import compare

        return compare
    if name == "gate":
        from harness.lifecycle.release import gate_candidate

        return gate_candidate
    if name == "frames":
        from harness.store import frames

        return frames
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
