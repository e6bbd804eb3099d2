"""Champion registry: the released run of a target, in a reviewable file: `baselines/champions/<target>.json`.

Invariant: the file holds digests and numbers only, no path of a machine; the rows that its digests name are
the baseline, whatever becomes of the run's name.
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

    `units` holds the units of those scores that are no rates where higher is better.

    `verdict` is what the gate said when it was promoted (empty where it could not say anything),
    `sentence` the evidence, `despite` why it was promoted although it had not passed. `first_base` is the
    digest of the base that the first of its champions was judged against, `cumulative` the macro against that
    one as [delta, low, high, n]; empty where it was not measured.
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
    """Return where the champion of a target is written, below the experiment's folder."""
    return folder / "baselines" / "champions" / f"{target}.json"


def read_champion(folder: Path, target: str) -> Champion | None:
    """Read the champion of a target; None where nobody was promoted.

    Raises:
        UserError: the file is no champion's.
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
        UserError: a file is no champion's.
    """
    targets = sorted(path.stem for path in champion_file(folder, "*").parent.glob("*.json"))
    return [found for target in targets if (found := read_champion(folder, target)) is not None]


def find_first_base(folder: Path, target: str) -> str:
    """Return the digest of the base that the first champion was judged against; empty without a champion.

    Raises:
        UserError: the file is no champion's.
    """
    champion = read_champion(folder, target)
    return (champion.first_base or champion.base_digest) if champion else ""
