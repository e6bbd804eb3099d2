"""Champion of a target: the released run, in a reviewable file: `baselines/champions/<target>.json`.

Invariant: the file holds digests and numbers, never a path of a machine. The rows that its digests name are
the baseline, even after the run was renamed or removed.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.formatting import Unit
from harness.records import StoredName, checksum, is_bare_name, read_object
from harness.store.layout import Store


@dataclass(frozen=True, slots=True)
class Champion:
    """The run that gates compare with; `scores` maps "task metric" to [score, low, high, n] on test.

    `units` holds the units of scores other than rates where higher is better. `verdict` is the gate's verdict
    at promotion (empty without one), `sentence` the evidence, `despite` the reason for promoting a run that
    had not passed. `first_base` is the digest of the base that the target's first champion was judged
    against, `cumulative` the macro change against that base as [delta, low, high, n]; empty if it was not
    measured. `fit_key` names the folder of its own weights, empty where it has none; `files` maps each file
    of it to its SHA-256 at promotion.
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
    fit_key: str = ""
    files: dict[str, str] = field(default_factory=dict)


def champion_file(folder: Path, target: str) -> Path:
    """Return the path of a target's champion, below the experiment's folder."""
    return folder / "baselines" / "champions" / f"{target}.json"


def hash_weights(store: Store, fit_key: str) -> dict[str, str]:
    """Map each file of trained weights, below their folder, to the SHA-256 of its content as it is now.

    Checkpoints along the training are not read. Empty without a key, or where the folder is gone.
    """
    folder = store.weights(fit_key) if fit_key else store.folder / "weights"
    kind = read_object(folder / "fit.json").get("kind")
    own = folder.glob(f"{kind}*") if isinstance(kind, str) and is_bare_name(kind) else ()
    files = sorted(file for path in own for file in (path, *path.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): checksum(file) for file in files}
