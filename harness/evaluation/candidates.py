"""Candidates resolved from their recipes: the source of their weights, their bases, seeds and method.

Invariant: a candidate is resolved once, from the experiment and its bases alone. Weights are read only when
complete.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import plugins
from harness.errors import CandidateFailed, Diverged, Problem, UserError
from harness.models import artefacts
from harness.models.hub import ModelSource, quantize
from harness.plugins import Method
from harness.records import Trial, digest, read_training_record
from harness.spec import Experiment, Recipe
from harness.training import DIGESTS, FIT, Weights, adapter_digest

DIVERGED = "diverged.json"


def digest_training_rows(recipe: Recipe) -> str:
    """Digest a recipe's settings for training rows; empty if it uses the target's."""
    if not (recipe.train or recipe.mix):
        return ""
    mix = recipe.mix.model_dump(mode="json") if recipe.mix else None
    return digest([plugins.method(recipe.method).draws_from, recipe.train, mix])


@dataclass(frozen=True, slots=True)
class ResolvedCandidate:
    """A candidate with everything that its recipe refers to.

    `source` is the recipe that makes its weights, under `source_name` (its own unless it borrows them), and
    `method` that recipe's. `init` is the candidate that the source starts from, `reward` and `choosers` are
    those whose reward models train it and choose among its answers. `base` is the published base,
    `trained_base` the one that is trained, `served_base` the one that answers. `seeds` is a single seed if
    others would make the same weights. `given` is the model if nothing has to be made. `prompt_trials` are
    the prompts that validation chose from.
    """

    name: str
    recipe: Recipe
    source_name: str
    source: Recipe
    method: Method
    init: "ResolvedCandidate | None"
    reward: "ResolvedCandidate | None"
    base: ModelSource
    trained_base: ModelSource
    served_base: ModelSource
    seeds: tuple[int, ...]
    given: ModelSource | None = None
    merges: "tuple[ResolvedCandidate, ...]" = ()
    choosers: "tuple[ResolvedCandidate, ...]" = ()
    prompt_trials: tuple[Trial, ...] = ()
    prompts_proposed_by: str = ""

    @property
    def searches_prompts(self) -> bool:
        """Whether validation has yet to choose its prompt."""
        return bool(self.recipe.tried) and not self.method.trains

    @property
    def is_remote(self) -> bool:
        """Whether its weights are elsewhere and are evaluated over HTTP."""
        return self.method.is_remote

    @property
    def makes(self) -> str:
        """The kind of its weights: that of `init_from` if its method supports several, else the method's."""
        init_kind = self.init.makes if self.init and plugins.OR in self.method.makes else ""
        return init_kind or self.method.makes

    @property
    def is_target_only(self) -> bool:
        """Whether it is measured on the target only: a baseline with weights other than its base's."""
        return self.recipe.role == "baseline" and self.method.tunes

    @property
    def bases(self) -> tuple[ModelSource, ...]:
        """The bases that it is measured against: as published, and as served if that differs."""
        return tuple(dict.fromkeys((self.base, self.served_base)))

    @property
    def lineage(self) -> dict[str, Recipe]:
        """The recipes that make its weights or choose its answers, its source first."""
        lineages = (d.lineage for d in filter(None, (self.init, self.reward, *self.merges, *self.choosers)))
        return {self.source_name: self.source} | {n: r for lineage in lineages for n, r in lineage.items()}

    @property
    def points(self) -> tuple[dict[str, Any], ...]:
        """The points of its source's sweep, or some of its search; otherwise one empty point."""
        return tuple(self.source.points)

    @property
    def trials(self) -> tuple["ResolvedCandidate", ...]:
        """The candidate at each of these points."""
        return tuple(self.at(point) for point in self.points)

    def at(self, point: Mapping[str, Any]) -> "ResolvedCandidate":
        """Return the candidate at one point of its sweep or search."""
        if self.method.trains:
            return replace(self, source=self.source.with_params(dict(point)))
        source = self.source.with_prompt(dict(point))
        return replace(self, source=source, recipe=self.recipe if self.recipe.weights_of else source)


def resolve_candidates(
    experiment: Experiment, bases: Mapping[str, ModelSource]
) -> dict[str, ResolvedCandidate]:
    """Resolve every candidate of an experiment; `bases` holds each model that a candidate names."""
    resolved: dict[str, ResolvedCandidate] = {}

    def add(name: str) -> None:
        recipe = experiment.candidates[name]
        for reference in recipe.references:
            if reference in experiment.candidates and reference not in resolved:
                add(reference)
        resolved[name] = resolve(name, recipe, experiment, bases, resolved)

    for name in experiment.candidates:
        if name not in resolved:
            add(name)
    return {name: resolved[name] for name in experiment.candidates}


def resolve(
    name: str,
    recipe: Recipe,
    experiment: Experiment,
    bases: Mapping[str, ModelSource],
    resolved: Mapping[str, ResolvedCandidate],
) -> ResolvedCandidate:
    """Resolve a recipe, given the already `resolved` candidates that it refers to."""
    source = experiment.candidates[recipe.weights_of] if recipe.weights_of else recipe
    method = plugins.method(source.method)
    init = resolved[source.init_from] if source.init_from else None
    reward = resolved.get(source.reward or "")
    merges = tuple(resolved[m] for m in source.merges)
    choosers = tuple(resolved[c] for c in dict.fromkeys((recipe.chooser, source.chooser)) if c)
    parent = init or next(iter(merges), None)
    base = parent.base if parent else bases[source.base_model or experiment.base_model]
    quantization = source.quantization or method.quantization
    trained_base = parent.served_base if parent else quantize(base, quantization)
    serve_on = recipe.serve_on or source.serve_on
    served_base = quantize(base, "" if serve_on == "bf16" else serve_on) if serve_on else trained_base
    seeds = experiment.seeds if method.seeded else experiment.seeds[:1]
    given = base if method.keeps_base else None
    if given is None and source.path and names_whole_model(source):
        whole_model = bases[source.path]  # replaces the base; its tokenizer is part of the weights
        own_digest = digest([whole_model.weights_digest, whole_model.template_digest])
        given = base._replace(path=whole_model.path, weights_digest=own_digest)
    parts = (init, reward, base, trained_base, served_base, seeds, given, merges, choosers)
    return ResolvedCandidate(name, recipe, recipe.weights_of or name, source, method, *parts)


def names_whole_model(recipe: Recipe) -> bool:
    """Tell whether a recipe names a whole model made elsewhere, which is opened in place of a base."""
    method = plugins.method(recipe.method)
    if not recipe.path or not method.made_elsewhere or method.makes not in ("model", "artefact"):
        return False
    return method.makes == "model" or artefacts.format_of(Path(recipe.path)) == "model"


def refuse_silent(candidate: ResolvedCandidate) -> None:
    """Refuse a candidate that gives no answers."""
    if not candidate.method.answers:
        raise UserError(phrase_silent(candidate.name, candidate.source.method))


def phrase_silent(name: str, method: str) -> Problem:
    """Build the problem of a candidate that gives no answers."""
    found, expected = f"the method {method}, whose weights answer nothing", "a candidate that answers"
    return Problem(f"candidate {name}", found, expected, f"harness train {name}, which makes it")


def base_weights(base: ModelSource) -> Weights:
    """Return the own weights of a base, or of a whole model in its place."""
    return Weights("base", base.weights_digest, None, source=base)


def read_weights(candidate: ResolvedCandidate, folder: Path) -> Weights | None:
    """Read finished weights as served, or None; Diverged or CandidateFailed if they cannot be used."""
    if (folder / DIVERGED).exists():
        raise Diverged(*json.loads((folder / DIVERGED).read_text()))
    if not (folder / FIT).exists():
        return None
    try:
        fit = json.loads((folder / FIT).read_text())
        training = read_training_record(fit["training"])
        kind, own_digest, trained_on = fit["kind"], str(fit["digest"]), fit.get("trained_on")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        knob = "delete that folder, and compare makes them again"
        raise CandidateFailed(f"{folder / FIT} cannot be read ({error})", knob) from None
    served_base = candidate.served_base
    if kind == "model" and served_base.quantization:
        raise CandidateFailed("serve_on, and weights that turned out to be a whole model", "leaving it out")
    if kind == "adapter" and served_base.weights_digest != trained_on:
        own_digest = adapter_digest(folder / "adapter", served_base.weights_digest)
    return Weights(kind, own_digest, folder, training, served_base)


def merge_weights(weights: Weights) -> Weights:
    """Return an adapter's weights merged into a base in 16 bits: rounded, so with another digest."""
    if weights.kind != "adapter":
        raise CandidateFailed(f"serve_merged, and weights of the kind {weights.kind}", "leaving it out")
    return weights._replace(digest=digest([weights.digest, "serve_merged"]), merged=True)


def refuse_damaged(weights: Weights) -> None:
    """Raise CandidateFailed if the files of trained weights have changed since they were made."""
    if weights.folder is None or weights.kind not in DIGESTS:
        return
    try:
        fit = json.loads((weights.folder / FIT).read_text())
        is_whole = DIGESTS[weights.kind](weights.folder / weights.kind, fit["trained_on"]) == fit["digest"]
    except (OSError, ValueError, KeyError):
        is_whole = False
    if not is_whole:
        knob = "delete that folder, and compare makes them again"
        raise CandidateFailed(f"the weights in {weights.folder} are damaged", knob)


def add_lineage(names: Iterable[str], candidates: Mapping[str, ResolvedCandidate]) -> list[str]:
    """List candidates, each before those that make its weights or choose its answers."""
    return list(dict.fromkeys(member for name in names for member in (name, *candidates[name].lineage)))
