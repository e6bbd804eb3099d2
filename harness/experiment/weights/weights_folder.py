"""Folder of a candidate's weights: its name holds everything that they depend on, and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import plugins
from harness.evaluation.candidate_rows import mix_context, training_data
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.row_sets import prompting_digest
from harness.evaluation.session import Session
from harness.metrics import version as metric_version
from harness.models.weight_files import content_digest
from harness.plugins import Method
from harness.provenance import digest_code, versions_of
from harness.records import digest, drop_defaults, is_unspaced
from harness.regularizers import regularizers_digest
from harness.spec import Recipe, Task, is_path, metric_name
from harness.training import Weights, can_share, is_metric_file


def folder_of(
    session: Session,
    candidate: ResolvedCandidate,
    seed: int,
    init: Weights | None,
    reward: Weights | None = None,
    merges: Sequence[Weights] = (),
) -> Path:
    """Name the folder of weights by everything that they depend on, and nothing else."""
    source, method, base = candidate.source, candidate.method, candidate.trained_base
    identity = {
        "method": source.method,
        "code": [plugins.version("methods", source.method), versions_of(*method.loops)],
        "params": method.params(**source.params).identity(),
        "base": [base.weights_digest, base.template_digest],
        "init": init.digest if init else "",
        "reward": _reward_digest(session, source, reward),
        "reads": method.reads(method.params(**source.params)),
        "merges": [one.digest for one in merges],
        "path": content_digest(sorted(Path(source.path).glob("adapter_*"))) if source.path else "",
        "training": _training_digest(session, method, source, seed),
        "track": source.track.points if source.track else 0,
        "processes": of_several if (of_several := processes_of(session, source)) > 1 else 0,
        "shards": shards_of(session, source),
        "regularize": regularizers_digest(source.regularize, mix_context(session, source, seed)),
    }
    return session.store.weights(digest({name: value for name, value in identity.items() if value}))


def processes_of(session: Session, source: Recipe) -> int:
    """Return how many processes share a training: one where its method, a regulariser or its base cannot."""
    able = can_share(plugins.method(source.method), source.regularize) and not source.quantization
    return session.experiment.training.accelerate.num_processes if able else 1


def shards_of(session: Session, source: Recipe) -> str:
    """Name how the processes of a training shard its weights; empty where each holds all of them."""
    return session.experiment.training.accelerate.shards if processes_of(session, source) > 1 else ""


def _reward_digest(session: Session, source: Recipe, reward: Weights | None) -> str:
    """Digest what the answers of a training are rewarded by; empty of one without rewards."""
    if source.reward is None or reward:
        return reward.digest if reward else ""
    if is_path(source.reward) and not is_metric_file(Path(source.reward)):
        return digest_code(Path(source.reward))
    task = session.target.task.model_dump(mode="json", exclude={"data", "limit"}, exclude_defaults=True)
    unspaced = is_unspaced(text for e in session.target.items.train for text in e.references)
    return digest([metric_name(source.reward), metric_version(source.reward, unspaced), task])


def _training_digest(session: Session, method: Method, source: Recipe, seed: int) -> str:
    """Digest the rows that a method trains on, and how it computes; empty for one that needs none."""
    if not method.draws_from:
        return ""
    target = training_data(session, source)
    pairs = [drop_defaults(pair) for pair in target.items.pairs] if method.draws_from == "pairs" else []
    rows = [] if pairs else [target.versions["train"], target.versions["validation"]]
    drawn = [seed] if method.seeded else []
    computed = [session.machine.precision, session.machine.device]
    known = [pairs, rows, prompting_digest(session, source, seed), drawn, computed]
    own = _describe_prompts_of_pairs(session.target.task, source) if pairs else {}
    return digest([*known, own] if own else known)


def _describe_prompts_of_pairs(task: Task, source: Recipe) -> dict[str, Any]:
    """Return the task's own part of the prompts of pairs, which no version of the pairs holds."""
    own = {"chat_template"} | ({"system"} if source.system is None else set())
    return task.model_dump(include=own, exclude_defaults=True)
