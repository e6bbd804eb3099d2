"""What a reader should know of how the candidates were made, said under the table.

Invariant: sentences about recipes and stored figures; nothing here compares scores.
"""

from collections.abc import Iterable, Iterator, Sequence

from harness.evaluation.candidates import source_of
from harness.evaluation.session import Bench
from harness.models.openai_api import Settings
from harness.records import Run
from harness.spec import Recipe


def remarks(bench: Bench, runs: Sequence[Run]) -> list[str]:
    """List the sentences about finished runs."""
    done = [run for run in runs if run.state == "done"]
    of_runs = dict.fromkeys(
        [*_dropped(done), *_unpacked(done), *_chosen(done), *_theirs(done)]
    )  # seeds say the same again
    return [*of_runs, *_unswept(bench, done), *_other_bases(bench, done), *_served(bench, done)]


def _dropped(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        if n := run.training.get("n_dropped_too_long"):
            what = "pairs" if "n_pairs" in run.training else "training rows"
            yield f"{run.candidate}: {n} {what} were longer than max_length and left out"


def _unpacked(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        if reason := run.training.get("not_packed"):
            yield f"{run.candidate}: trained without packing, which {reason}"


def _chosen(runs: Iterable[Run]) -> Iterator[str]:
    for run in runs:
        trials = run.training.get("sweep", [])
        for trial in (t for t in trials if t["chosen"]):
            point = ", ".join(
                f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial["params"].items()
            )
            yield f"{run.candidate}: {point} was the best of {len(trials)} trials on validation"


def _unswept(bench: Bench, runs: Iterable[Run]) -> Iterator[str]:
    """Name what was trained at one learning rate: the best one differs tenfold between methods."""
    tried: dict[tuple[str, str], set[object]] = {}
    named: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        recipe = bench.experiment.candidates[run.candidate]
        if recipe.weights_of is None and "loss" in run.training:
            key = (run.base_digest, run.method)
            tried.setdefault(key, set()).update(_rates(source_of(bench, recipe)))
            named.setdefault(key, []).append(run.candidate)
    once = dict.fromkeys(name for key, names in named.items() if len(tried[key]) < 2 for name in names)
    if once:
        yield f"learning rate not swept: {', '.join(once)}; another one may do better"


def _rates(source: Recipe) -> list[object]:
    return source.sweep.get("learning_rate") or [source.params.get("learning_rate")]


def _other_bases(bench: Bench, runs: Iterable[Run]) -> Iterator[str]:
    others = {run.candidate: run.base_model for run in runs if run.base_digest != bench.source.weights_digest}
    for candidate, base in others.items():
        yield f"{candidate}: made from {base}, and measured against that"


def _served(bench: Bench, runs: Sequence[Run]) -> Iterator[str]:
    """Say of each endpoint what was measured of it and what was not."""
    priced = bench.experiment.decide.usd_per_million_tokens is not None
    for run in (run for run in runs if run.method == "endpoint"):
        settings = Settings(**source_of(bench, bench.experiment.candidates[run.candidate]).params)
        cost = "" if priced else "; its requests have no price here without decide.usd_per_million_tokens"
        asked = f"{settings.name}, asked by {settings.protocol}"
        yield f"{run.candidate}: {asked}; times include the way there{cost}"
        if left := [m.task.name for m in bench.suites if f"{m.task.name}/test" not in run.rows]:
            said = "which need token ids or their log-probabilities, and chat has neither"
            yield f"{run.candidate}: not asked {', '.join(left)}, {said}"
    if priced and len({run.method == "endpoint" for run in runs}) > 1:
        yield "decide.usd_per_million_tokens prices the requests of local candidates as well"


def _theirs(runs: Iterable[Run]) -> Iterator[str]:
    """Say where an adapter made elsewhere names another base than the one it was put on; its shapes fit."""
    for run in runs:
        named = run.training.get("named_base")
        if named and _last(str(named)) != _last(run.base_model):
            yield f"{run.candidate}: its own files name {named} as its base; it was put on {run.base_model}"


def _last(name: str) -> str:
    """Return a model's own name, without its owner or folder."""
    return name.rstrip("/").rpartition("/")[2]
