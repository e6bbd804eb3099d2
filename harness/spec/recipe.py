"""Schema of a candidate's recipe: weights × prompting × answer, mixture of rows, search space, decoding.

Invariant: a valid setting samples answers that may differ, and chooses among them without their references.
A list that ends with `log` or `linear` is a range that includes its ends; any other list is a choice. A
range between two integers contains only integers. A short form and its full form are the same recipe.
Source: Holtzman et al. 2020, arXiv:1904.09751 (`top_p`); Wang et al. 2023, arXiv:2203.11171 (`majority`)
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import exp, log
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from harness.masking import mask_values
from harness.spec.task import BASE, JUDGE, Spec, rule

MEAN_LOGPROB = "mean_logprob"
SCALES = ("log", "linear")
Pruner = Literal["median", "percentile", "successive_halving", "hyperband"]  # of Optuna
PROMPTS = ("system", "template", "answer", "prompting")  # keys that say how a candidate is prompted
PLUGINS = {"prompting": "prompting", "regularize": "regularizers"}  # recipe key: kind of plugin
# Keys besides `method` that say how weights are made.
_MAKE_WEIGHTS = (
    "params", "init_from", "merges", "reward", "path", "base_model", "quantization", "sweep", "search",
    "prune", "subject_to", "regularize", "track", "train", "mix",
)  # fmt: skip


class Decoding(Spec):
    """Decoding of a candidate's answers to the target; without it they are greedy.

    At a `temperature` above 0 the tokens of an answer are sampled from the likeliest ones that together have
    probability `top_p`. For each item that many `samples` are drawn, each with its own seed, which other runs
    and candidates share. `choose` says which of several answers a user gets: the `first`, whose expected
    score is the mean over all of them; the one that the `majority` agrees on (self-consistency), where the
    primary metric decides which answers are equal and the earliest wins a tie; or the `best` by the criterion
    that `by` names. `by` is `mean_logprob`, the mean log-probability of an answer's tokens, a judge among the
    task's metrics, such as `judge:./rubric.yaml`, or a candidate that makes a reward model; never the
    reference, which no user has.
    """

    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, ge=1, le=256)
    choose: Literal["first", "majority", "best"] = "first"
    by: str | None = None

    @property
    def reward_model(self) -> str:
        """The name of the candidate whose reward model chooses; empty if none does."""
        by = self.by or ""
        return "" if by == MEAN_LOGPROB or by.startswith(JUDGE) else by

    @rule
    def _check_draws(self) -> Iterator[str]:
        if self.temperature == 0 and self.samples > 1:
            yield f"{self.samples} samples at temperature 0, all the same; write a temperature, or samples: 1"
        if self.temperature == 0 and self.top_p < 1:
            yield "top_p at temperature 0, where nothing is sampled; write a temperature, such as 0.7"
        if self.choose != "first" and self.samples == 1:
            yield f"choose: {self.choose} of one sample; write samples: 5, or more"
        if (self.choose == "best") != (self.by is not None):
            by = f"by: {MEAN_LOGPROB}, a judge or a candidate that makes a reward model"
            yield f"choose: best and by, which need each other; write {by}"


class SubjectTo(Spec):
    """Constraint on what a sweep or search chooses: how much it may have forgotten, on validation items.

    `forgetting` is the largest mean loss against the base over the capability tasks, as a share of their
    metrics' ranges. It is measured on `items` general items that no test uses: those of a task's `validation`
    file, else those of its test file beyond its `limit`.
    """

    forgetting: float = Field(ge=0, lt=1)
    items: int = Field(200, ge=1)


class Span(NamedTuple):
    """Range of a parameter, uniform on a linear or a logarithmic scale."""

    low: float
    high: float
    is_log: bool

    @property
    def is_whole(self) -> bool:
        """Whether it contains only integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float:
        """Return the value at a share of the way from the lower to the upper end."""
        if share in (0, 1):
            return self.high if share else self.low
        if self.is_log:
            value = exp(log(self.low) + share * (log(self.high) - log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.is_whole else value


def is_span(values: Sequence[Any]) -> bool:
    """Tell whether a list is written as a range."""
    return bool(values) and values[-1] in SCALES


def span_of(values: Sequence[Any]) -> Span:
    """Read a list written as a range.

    Raises:
        ValueError: it does not have two rising ends, or they are not positive on a logarithmic scale.
    """
    *ends, scale = values
    if len(ends) != 2 or not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise ValueError(f"a range of {len(ends)} values; write [lowest, highest, {scale}]")
    low, high = ends
    if not low < high or (scale == "log" and low <= 0):
        above = ", both above 0" if scale == "log" else ""
        raise ValueError(f"a range from {low} to {high}; write the lowest first{above}")
    return Span(low, high, scale == "log")


def ends(values: Sequence[Any]) -> list[Any]:
    """Return the values of a choice, or the two ends of a range."""
    return list(values[:2]) if is_span(values) else list(values)


def spread(space: Mapping[str, Sequence[Any]], n: int) -> list[dict[str, Any]]:
    """Return `n` points spread over a space, from the lower to the upper ends."""
    points = []
    for i in range(n):
        share = i / max(1, n - 1)
        points.append({k: span_of(v).at(share) if is_span(v) else v[i % len(v)] for k, v in space.items()})
    return points


class Mix(Spec):
    """Mixture of files that a candidate trains on, sampled with the experiment's first seed.

    `files` maps each file to its share of the rows; shares are positive and add up to 1. For a list of files,
    the shares are proportional to their numbers of rows to the power of 1 / `temperature`. `rows` is how many
    are drawn, by default as many as no file is too small for. `replacement` allows a row to be drawn more
    than once.
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
        """The shares of the files; None if their sizes decide."""
        return tuple(self.files.values()) if isinstance(self.files, dict) else None


def spell_out(recipe: dict[str, Any]) -> dict[str, Any]:
    """Expand a recipe's short forms: a bare plugin or file, and `replay: SHARE` for a regulariser."""
    spelt = dict(recipe)
    if isinstance(spelt.get("train"), str):
        spelt["train"] = [spelt["train"]]
    for key in PLUGINS:
        if isinstance(spelt.get(key), str):
            spelt[key] = {spelt[key]: {}}
        if isinstance(spelt.get(key), dict):
            spelt[key] = {name: {} if params is None else params for name, params in spelt[key].items()}
    replay = spelt.pop("replay", None)
    if replay is not None and isinstance(spelt.get("regularize", {}), dict):
        params = {"share": replay} if isinstance(replay, float | int) else replay
        spelt["regularize"] = {**spelt.get("regularize", {}), "replay": params}
    return spelt


class Tracking(Spec):
    """Points along a training: its weights at some checkpoints, with their scores.

    The weights of `points` checkpoints are kept, spread evenly over the steps if there are enough. Each
    answers the validation rows of the target and `items` general items, from the half that the search of a
    rescue uses.
    """

    points: int = Field(ge=1, le=20)
    items: int = Field(200, ge=1)


class Recipe(Spec):
    """Recipe of a candidate: weights × prompting × answer.

    `prompting` maps the names of promptings to their parameters, applied in order; a bare name is the
    prompting with its defaults. `weights_of` takes the weights of another candidate instead of making its
    own; `init_from` trains the adapter of another candidate further. `merges` names several candidates whose
    adapters are merged into one. `reward` names the reward of a method that trains on rewards: a candidate
    that makes a reward model, one of our metrics, or a Python file with a function `reward`. `path` is the
    folder of weights made elsewhere. `base_model` is this candidate's own base, if it differs from the
    experiment's. `quantization` is the quantisation of the base on which an adapter is trained: NF4, or
    `int8` (LLM.int8). `serve_on` serves an adapter on the base quantised to one of them, or on the
    unquantised base (`bf16`, whatever the machine's precision). `serve_merged` answers with the adapter of
    `weights_of` merged into the base's weights, which rounds them to 16 bits. `sweep` tries each value of the
    parameters it names and keeps the best on validation; for a method that trains nothing they are `system`,
    `template`, `answer` and `prompting`, each with a list. `search` tries `trials` points of ranges (`[1e-5,
    1e-3, log]`, `[0, 0.2, linear]`) and choices (`[8, 16, 32]`), which Optuna proposes from the results so
    far. `prune` names the Optuna pruner that stops trials early, with its parameters, by their validation
    scores at the points of `track`; `trials` is then the budget in complete trainings. `subject_to` bounds
    what the chosen trial may have forgotten. `regularize` maps the names of regularisers of its training to
    their parameters; `replay: SHARE` is short for that of replay. `track` measures target and forgetting
    along the training. `template` wraps the user message, `{prompt}`.

    `train` names files of rows that replace the target's training rows, or its pairs if the method trains on
    pairs; `mix` draws them from several files by share.

    `method` makes the weights, with its own `params`. `role: baseline` marks a model made elsewhere as one to
    beat: it is measured on the target only, and counts as untrained. `answer` is generated, or is the label
    ranked first by log-likelihood; `decoding` says how it is sampled. `system` replaces the task's system
    message.
    """

    method: str = BASE
    params: dict[str, Any] = {}
    weights_of: str | None = None
    init_from: str | None = None
    reward: str | None = None
    merges: tuple[str, ...] = ()
    path: str | None = None
    base_model: str | None = None
    role: Literal["candidate", "baseline"] = "candidate"
    quantization: Literal["nf4", "int8"] | None = None
    serve_on: Literal["nf4", "int8", "bf16"] | None = None
    serve_merged: bool = False
    sweep: dict[str, list[Any]] = {}
    search: dict[str, list[Any]] = {}
    trials: int = Field(16, ge=2, le=64)
    prune: dict[Pruner, dict[str, Any]] = {}
    subject_to: SubjectTo | None = None
    regularize: dict[str, dict[str, Any]] = {}
    train: tuple[str, ...] = ()
    mix: Mix | None = None
    track: Tracking | None = None
    prompting: dict[str, dict[str, Any]] = {"zero_shot": {}}
    answer: Literal["generate", "rank"] = "generate"
    decoding: Decoding | None = None
    system: str | None = None
    template: str | None = None

    @property
    def sampling(self) -> Decoding | None:
        """Sampling settings of answers; None if they are greedy."""
        return self.decoding if self.decoding and self.decoding.temperature else None

    @property
    def row_paths(self) -> tuple[str, ...]:
        """The files of its own training rows; empty if it trains on the target's."""
        return self.mix.paths if self.mix else tuple(self.train)

    @property
    def chooser(self) -> str:
        """The candidate whose reward model chooses among its answers; empty if none does."""
        return self.sampling.reward_model if self.sampling else ""

    @property
    def references(self) -> list[str]:
        """The candidates that make its weights or choose its answers; `reward` may also name a metric."""
        return [n for n in (self.weights_of, self.init_from, self.reward, *self.merges, self.chooser) if n]

    @property
    def tried(self) -> dict[str, list[Any]]:
        """The values of its sweep, or the choices and range ends of its search."""
        return self.sweep or {name: ends(values) for name, values in self.search.items()}

    @property
    def points(self) -> list[dict[str, Any]]:
        """The points of its sweep, or as many as its search tries, spread over its space."""
        if self.search:
            return spread(self.search, self.trials)
        return [dict(zip(self.sweep, values, strict=True)) for values in product(*self.sweep.values())]

    def with_params(self, point: dict[str, Any]) -> "Recipe":
        """Return the recipe with the parameters of one point, without sweep and search."""
        nothing_to_try: dict[str, Any] = {"sweep": {}, "search": {}, "prune": {}, "subject_to": None}
        return self.model_copy(update={**nothing_to_try, "params": {**self.params, **point}})

    def stored_form(self) -> dict[str, Any]:
        """Return the plain form that runs store, without secrets of command lines."""
        plain: dict[str, Any] = mask_values(self.model_dump(mode="json"))
        return plain

    def is_stored_as(self, stored: dict[str, Any], folder: Path) -> bool:
        """Tell whether a run's stored recipe equals this one; the experiment may have been moved since.

        A file below `folder`, where it is now, equals a stored one that ends with its relative path.
        """
        folder_text = json.dumps(str(folder))[1:-1]
        now, then = (
            json.dumps(recipe.stored_form(), sort_keys=True).replace(f'"{folder_text}/', '"./')
            for recipe in (self, Recipe.model_validate(stored))
        )
        for path in sorted(re.findall(r'"\./([^"]+)"', now), key=len, reverse=True):
            then = f'"./{path}"'.join(re.split(f'"/(?:[^"]*/)?{re.escape(path)}"', then))
        return now == then

    def with_prompt(self, point: dict[str, Any]) -> "Recipe":
        """Return the recipe with the prompt of one point, without sweep and search."""
        values = self.model_dump(exclude_defaults=True, exclude={"sweep", "search", "trials"})
        return Recipe.model_validate({**values, **point})

    @field_validator("prune", mode="before")
    @classmethod
    def _fill_pruner(cls, value: Any) -> Any:
        return {value: {}} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _expand_short_forms(cls, data: Any) -> Any:
        return spell_out(data) if isinstance(data, dict) else data

    @rule
    def _check_sources(self) -> Iterator[str]:
        makes_weights = self.method != BASE or any(getattr(self, name) for name in _MAKE_WEIGHTS)
        if self.weights_of and makes_weights:
            names = f"{', '.join(_MAKE_WEIGHTS[:-1])} and {_MAKE_WEIGHTS[-1]}"
            yield f"weights_of takes another candidate's weights: leave out method, {names}"
        if self.serve_merged and not self.weights_of:
            yield "serve_merged is a candidate of its own: add weights_of, the adapter it merges"
        if (self.init_from or self.merges) and (self.base_model or self.quantization):
            key = "init_from takes" if self.init_from else "merges takes"
            yield f"{key} another candidate's base: leave out base_model and quantization"
        if self.sweep and self.search:
            yield "sweep and search both say what is tried: leave one out"
        if len(self.prune) > 1:
            yield f"prune names {len(self.prune)} pruners: leave one"
        if self.prune and not (self.search and self.track):
            yield "prune ends trials of a search at tracked points: add search, and track: {points: 4}"
        if self.subject_to and not self.tried:
            yield "subject_to bounds what a sweep or search chooses: add one, or leave it out"
        if self.train and self.mix:
            yield "train and mix both say what is trained on: leave one out"
