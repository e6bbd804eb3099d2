"""Remarks on trainings: sentences on what was left out, learned nothing or was not tried; notes of a report.

Invariant: no model is loaded and no row is read; a training's record and its recipe say it all.
"""

from collections.abc import Iterable, Iterator

from harness.evaluation.session import Session
from harness.experiment.runs.stored_rows import Runs
from harness.formatting import pluralize
from harness.records import Run
from harness.report import front_sentence, print_tried_value
from harness.spec import Recipe

NO_CHANGE = "found nothing to change"
_MOSTLY = 0.5  # of the prompts of a training on rewards


def describe_trainings(session: Session, runs: Runs) -> Iterator[str]:
    """Yield the sentences about the weights of finished runs; several seeds may yield the same one."""
    for note in (_note_dropped, _note_unpacked, note_unmoved, note_rewards, _note_sweeps, _note_named_bases):
        yield from note(runs)
    for note_of in (_note_unchanged, _note_unswept, _note_fronts):
        yield from note_of(session, runs)


def _note_dropped(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        if n := run.training.n_dropped_too_long:
            what = "training rows" if run.training.n_pairs is None else "pairs"
            yield f"{run.candidate}: {n} {what} were longer than max_length and left out"


def _note_unpacked(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        if reason := run.training.not_packed:
            yield f"{run.candidate}: trained without packing, which {reason}"


def note_unmoved(runs: Iterable[Run]) -> Iterator[str]:
    """Name trainings of which every step was of the warm-up's first rate, 0: they are what they began as."""
    for run in runs:
        rates = [rate for _, rate in run.training.learning_rate]
        if rates and not any(rates):
            steps = pluralize(len(rates), "step")
            step = "warmup_steps: 0, smaller batches or more epochs"
            yield f"{run.candidate}: not trained, as the learning rate of its {steps} was 0; try {step}"


def note_rewards(runs: Iterable[Run]) -> Iterator[str]:
    """Name trainings on rewards that had little to learn from: no rewards, or the same for all answers."""
    for run in runs:
        rewards, equal = run.training.reward, [share for _, share in run.training.equal_rewards]
        known = [share for share in equal if share is not None]
        if rewards and all(mean is None for _, mean in rewards):
            steps = pluralize(len(rewards), "step")
            yield f"{run.candidate}: no answer of its {steps} could be rewarded, so it learned nothing"
        elif known and (mean := sum(known) / len(known)) >= _MOSTLY:
            yield (
                f"{run.candidate}: {100 * mean:.0f} % of the prompts had one reward for all answers, which "
                "teaches nothing; a graded reward, more num_generations or a higher temperature may help"
            )


def _note_sweeps(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        trials = run.training.sweep
        for trial in (t for t in trials if t.chosen):
            point = ", ".join(
                f"{k} {v:g}" if isinstance(v, float) else f"{k} {print_tried_value(v)}"
                for k, v in trial.params.items()
            )
            yield f"{run.candidate}: {point} was the best of {len(trials)} trials on validation"


def _note_named_bases(runs: Iterable[Run]) -> Iterator[str]:
    """Say where an adapter made elsewhere names another base than the one it was put on; its shapes fit."""
    for run in runs:
        named = run.training.named_base
        if named and _cut_to_last_name(named) != _cut_to_last_name(run.base_model):
            yield f"{run.candidate}: its own files name {named} as its base; it was put on {run.base_model}"


def _cut_to_last_name(name: str) -> str:
    """Return a model's own name, without its owner or folder."""
    return name.rstrip("/").rpartition("/")[2]


def _note_unchanged(session: Session, runs: Runs) -> Iterator[str]:
    """Name what equals the weights that it was made from, as its method had nothing to change."""
    of = {(run.candidate, run.seed): run.weights_digest for run in runs}
    for run in runs:
        recipe = session.candidates[run.candidate].recipe
        if recipe.init_from and of.get((recipe.init_from, run.seed)) == run.weights_digest:
            same = f"its weights are those of {recipe.init_from}"
            yield f"{run.candidate}: {run.method} {NO_CHANGE}, so {same}"


def _note_unswept(session: Session, runs: Iterable[Run]) -> Iterator[str]:
    """Name what was trained at one learning rate: the best one differs tenfold between methods."""
    tried: dict[tuple[str, str, str], set[object]] = {}
    named: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        candidate = session.candidates[run.candidate]
        if candidate.recipe.weights_of is None and run.training.loss:
            family = str(candidate.source.params.get("peft_type", ""))
            key = (run.base_digest, run.method, family)
            tried.setdefault(key, set()).update(_rates(candidate.source))
            named.setdefault(key, []).append(run.candidate)
    once = dict.fromkeys(name for key, names in named.items() if len(tried[key]) < 2 for name in names)
    if once:
        yield f"learning rate not swept: {', '.join(once)}; another one may do better"


def _rates(source: Recipe) -> list[object]:
    return source.tried.get("learning_rate") or [source.params.get("learning_rate")]


def _note_fronts(session: Session, runs: Iterable[Run]) -> Iterator[str]:
    """Name the steps of tracked trainings that no other beats in both target and capability."""
    sign = session.target.primary.unit.sign
    for run in runs:
        own = session.candidates[run.candidate].recipe.weights_of is None
        if own and (said := front_sentence(run.candidate, run.training, sign)):
            yield f"{run.candidate}: {said}"
