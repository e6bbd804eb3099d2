"""Context of a fit, and the weights that it returns.

Invariant: a method writes only into `context.folder`; what is evaluated later is what was saved there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.models.deltas import delta_digest
from harness.models.hardware import Machine
from harness.models.hub import ModelSource
from harness.models.weight_files import adapter_digest, model_digest
from harness.progress import Advance
from harness.records import Example, TrainingRecord
from harness.regularizers import Regularize
from harness.spec import Task

_LANGUAGE_MODELS = ("base", "adapter", "delta", "model", "completions", "chat")
CHECKPOINTS = "checkpoints"  # below a method's folder; kept until the weights are complete
TRACKED = "tracked"  # beside it: the weights of some checkpoints, kept with the others
# Digests of the weights of a kind, by their folder and the digest of their base.
DIGESTS: Mapping[str, Callable[[Path, str], str]] = {
    "adapter": adapter_digest,
    "delta": delta_digest,
    "model": model_digest,
    "reward": adapter_digest,
}


@dataclass(frozen=True, slots=True)
class Reward:
    """Source of rewards: a reward model with the base it was trained on, or what is `written` of another.

    That is the name of a metric, which is computed as the `task` says, or the path of a Python file.
    """

    model: Path | None = None
    source: ModelSource | None = None
    written: str = ""
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class FitContext:
    """Input of a method: the base, prompted examples, a folder to write weights into.

    `source` is the base as it will be served, so a quantised one where the method quantises. `pairs` are
    preference pairs, prompted like the examples. `init` is the folder of the adapter (or the model) that
    training starts from, `merges` are those of the adapters to merge, `reward` is what its answers are
    rewarded by; `path` is where weights made elsewhere lie. `prepare` changes the loaded base before it is
    trained, for example by freezing a part of it. `regularize` are the regularisers of the training, and
    `general` the rows that penalties read, by name. The weights of `track` checkpoints are kept; where
    `pause_at` of them are, training stops for now.
    """

    source: ModelSource
    machine: Machine
    folder: Path
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    chat_template: bool
    seed: int
    advance: Advance
    pairs: tuple[Example, ...] = ()
    init: Path | None = None
    path: Path | None = None
    prepare: Callable[[Any], None] = lambda model: None
    reward: Reward | None = None
    regularize: Regularize = field(default_factory=dict)
    general: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    merges: tuple[Path, ...] = ()
    track: int = 0
    pause_at: int = 0


class TrainingPaused(Exception):
    """A training that stopped at a tracked point, with a checkpoint to go on from."""


class Weights(NamedTuple):
    """Weights made by a method: kind, digest, folder and measured cost.

    An `adapter` lies in `folder/adapter`; a `delta` (see `models.deltas`), a whole `model`, a `reward` model,
    a classification `head` and one of an `embedding` likewise in folders of these names; of an endpoint the
    kind is the protocol it is asked by (`completions` or `chat`). `source` is the base as it is served; None
    is the experiment's own, and what a method gives back. An adapter that is `merged` answers from copies of
    the base's layers with its own added. `choosers` names the reward models that choose
    among several answers of these weights.
    """

    kind: Literal[
        "base",
        "adapter",
        "delta",
        "model",
        "classifier",
        "completions",
        "chat",
        "reward",
        "head",
        "embedding",
    ]
    digest: str
    folder: Path | None
    training: TrainingRecord = TrainingRecord()
    source: ModelSource | None = None
    choosers: tuple[tuple[str, "Weights"], ...] = ()
    merged: bool = False

    @property
    def is_language_model(self) -> bool:
        """Whether they generate text, and have a base and capabilities to lose."""
        return self.kind in _LANGUAGE_MODELS


def adapter_weights(context: FitContext, training: TrainingRecord) -> Weights:
    """Return the weights of the adapter that lies under `adapter/` of a context's folder."""
    own = adapter_digest(context.folder / "adapter", context.source.weights_digest)
    return Weights("adapter", own, context.folder, training)
