"""Champion registry: the released run of a target, in a reviewable file: `baselines/champions/<target>.json`.

Invariant: the file holds digests and numbers, never a path of a machine. The rows that its digests name are
the baseline, even after the run was renamed or removed.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import refuse_unreadable
from harness.formatting import Unit
from harness.records import StoredName, load
from harness.spec import Recipe


@dataclass(frozen=True, slots=True)
class Champion:
    """The run that gates compare with; `scores` maps "task metric" to [score, low, high, n] on test.

    `units` holds the units of scores other than rates where higher is better. `verdict` is the gate's verdict
    at promotion (empty without one), `sentence` the evidence, `despite` the reason for promoting a run that
    had not passed. `first_base` is the digest of the base that the target's first champion was judged
    against, `cumulative` the macro change against that base as [delta, low, high, n]; empty if it was not
    measured.
    """

    target: StoredName
    run_id: StoredName
    candidate: str
    seed: int
    experiment: str
    base_model: str
    weights_digest: str
    base_digest: str
    created: str
    rows: dict[str, StoredName]
    scores: dict[str, list[float]]
    recipe: dict[str, Any]
    verdict: str = ""
    sentence: str = ""
    despite: str = ""
    units: dict[str, Unit] = field(default_factory=dict)
    first_base: str = ""
    cumulative: list[float] = field(default_factory=list)


def champion_file(folder: Path, target: str) -> Path:
    """Return the path of a target's champion, below the experiment's folder."""
    return folder / "baselines" / "champions" / f"{target}.json"


def read_champion(folder: Path, target: str) -> Champion | None:
    """Read the champion of a target; None if no run was promoted.

    Raises:
        UserError: the file does not hold a champion.
    """
    path = champion_file(folder, target)
    if not path.exists():
        return None
    with refuse_unreadable(path, "what harness promote wrote", "promote again"):
        champion = load(Champion, path.read_bytes())
        Recipe.model_validate(champion.recipe)
        return champion


def champions(folder: Path) -> list[Champion]:
    """Read the champions of all targets, below the experiment's folder.

    Raises:
        UserError: a file does not hold a champion.
    """
    targets = sorted(path.stem for path in champion_file(folder, "*").parent.glob("*.json"))
    return [champion for target in targets if (champion := read_champion(folder, target)) is not None]


def find_first_base(folder: Path, target: str) -> str:
    """Return the digest of the base that the first champion was judged against; empty without a champion.

    Raises:
        UserError: the file does not hold a champion.
    """
    champion = read_champion(folder, target)
    return (champion.first_base or champion.base_digest) if champion else ""
