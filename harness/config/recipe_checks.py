"""Validation and lint of a recipe: how answers are drawn, regularizers, values to try, published ranges.

Invariant: a check looks at what could be read and never stops another check. Lint refuses nothing: it names
settings outside of the ranges of `recipe_ranges.toml`, with all sources that speak of such a model.
"""

import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness import plugins, spec
from harness.config.files import GridMember, describe_missing_file
from harness.config.rubrics import read_rubric
from harness.config.yaml_loading import Keys, Tree, mapping, problems_of
from harness.errors import Problem, UserError, did_you_mean
from harness.plugins import Method


class WrittenRecipe(NamedTuple):
    """A candidate's recipe, as far as it could be read, beside all `members` of the file."""

    name: str
    recipe: spec.Recipe
    members: Mapping[str, GridMember]
    tree: Tree

    @property
    def method(self) -> Method:
        """Its method, which has to be one that there is."""
        return plugins.method(self.recipe.method)

    @property
    def keys(self) -> Keys:
        """The keys below which it stands: those of its grid where it is a member of one."""
        return "candidates", self.members[self.name].source

    def where(self, *keys: str) -> str:
        """Return `file:line` of one of its values."""
        return self.tree.where((*self.keys, *keys))


_GREEDY = "remove decoding"


def check_decoding(written: WrittenRecipe, target: spec.Task | None) -> Iterator[Problem]:
    """Yield what forbids the decoding of a recipe, whose answers to the target it says."""
    recipe, members = written.recipe, written.members
    if (decoding := recipe.sampling) is None:
        return
    where = written.where("decoding")
    if recipe.answer == "rank":
        found = f"temperature {decoding.temperature:g} and answer: rank, which draws nothing"
        yield Problem(where, found, "answer: generate", _GREEDY)
    if target and target.kind != "generate":
        found = f"temperature {decoding.temperature:g} on a target of kind {target.kind}, which draws nothing"
        yield Problem(where, found, "a target of kind generate", _GREEDY)
    # What answers with labels alone, and log-probabilities of an endpoint that gives none.
    source = members.get(recipe.weights_of or "")
    made = mapping(source.recipe) if source else recipe.model_dump()
    method = made.get("method", spec.BASE)
    if method in plugins.names("methods"):
        if plugins.method(method).makes not in plugins.LANGUAGE_MODELS:
            found = f"temperature {decoding.temperature:g} of the method {method}, which answers with a label"
            yield Problem(where, found, "a language model", _GREEDY)
        is_chat = mapping(made.get("params")).get("protocol") == "chat"
        if decoding.by == spec.MEAN_LOGPROB and plugins.method(method).is_remote and is_chat:
            found = "by: mean_logprob of an endpoint that is asked by chat, which gives none of them"
            step = "choose: majority, or by: judge:./FILE.yaml"
            yield Problem(where, found, "protocol: completions", step)
    place = written.where("decoding", "by")
    if reward := decoding.reward_model:
        expected = f"{spec.MEAN_LOGPROB}, {spec.JUDGE}./FILE.yaml, or a candidate that makes a reward model"
        makers = plugins.methods(makes="reward")
        if reward not in members:
            found = f"the best by {reward!r}, which is not a candidate"
            if reward in plugins.names("metrics"):
                found = f"the best by {reward!r}, which needs the reference, and no user has it"
            methods = {name: mapping(member.recipe).get("method") for name, member in members.items()}
            able = {name for name, method in methods.items() if method in makers}
            yield Problem(place, found, expected, did_you_mean(reward, able))
        elif (made_by := mapping(members[reward].recipe).get("method", spec.BASE)) not in makers:
            found = f"the best by {reward}, whose method {made_by} makes no reward model"
            yield Problem(place, found, expected, f"a candidate with the method {' or '.join(makers)}")
    elif target and decoding.by and decoding.by != spec.MEAN_LOGPROB:
        yield from _check_judge(decoding.by, target, place)


def _check_judge(by: str, target: spec.Task, where: str) -> Iterator[Problem]:
    name = spec.metric_name(by)
    written = next((one for one in target.metrics if spec.metric_name(one) == name), None)
    if written is None:
        yield Problem(where, f"{by}, which is none of the target's metrics", "one of them", "list it there")
        return
    if name == target.primary_metric:
        found = f"{name}, which chooses the best answer and is the primary metric"
        expected = "another one to decide: a judge that scores its own choice counts its errors as a gain"
        yield Problem(where, found, expected, "write primary: with another metric, or by: mean_logprob")
    try:
        sees = read_rubric(Path(spec.metric_parts(written)[1])).needs_references
    except UserError:
        return  # said where the task's metrics are checked
    if sees:
        found = f"{name}, whose rubric shows the judge the reference"
        yield Problem(where, found, "what a user could choose by, who has none", "reference: false")


def recipes_by_prompt(recipe: spec.Recipe) -> Iterator[spec.Recipe]:
    """Yield the recipe with each single value that it tries for its prompt, as far as that is one."""
    for name, values in recipe.tried.items():
        for value in values if name in spec.PROMPTS else ():
            try:
                yield recipe.with_prompt({name: value})
            except ValidationError:
                continue  # is refused where it stands


def check_regularizers(written: WrittenRecipe) -> Iterator[Problem]:
    """Refuse regularisers that a method or its parameters do not take, and missing files of rows."""
    recipe, method = written.recipe, written.method
    known = plugins.names("regularizers")
    # The parameters with each tried value of those that say which hooks the method calls.
    values_by_name = {name: recipe.tried[name] for name, _ in method.hooks_where if name in recipe.tried}
    settings = [
        {**recipe.params, **dict(zip(values_by_name, values, strict=True))}
        for values in product(*values_by_name.values())
    ]
    for name, params in recipe.regularize.items():
        where = written.where("regularize", name)
        if name in known and not all(plugins.takes(method, name, tried) for tried in settings):
            able = [m for m in plugins.names("methods") if _takes_somehow(plugins.method(m), name)]
            found = f"{name} with the method {recipe.method}, {_explain_refusal(name, method)}"
            yield Problem(where, found, f"one of the methods {', '.join(able)}", f"remove {name}")
        elif name in known and (found := _find_refusal(name, recipe)):
            expected = "an adapter whose matrices are added to the base's"
            able = [n for n in plugins.penalties(method, recipe.params) if not _find_refusal(n, recipe)]
            instead = f", or take {' or '.join(able)}" if able else ""
            yield Problem(where, f"{name} with {found}", expected, f"remove {name}{instead}")
        if isinstance(path := params.get("data"), str):
            yield from check_general_rows(path, where)


def _find_refusal(regularizer: str, recipe: spec.Recipe) -> str:
    tried = ({name: value} for name, values in recipe.tried.items() for value in values)
    said = (plugins.refuses(regularizer, {**recipe.params, **one}) for one in ({}, *tried))
    return next(filter(None, said), "")


def _takes_somehow(method: Method, regularizer: str) -> bool:
    return plugins.takes(method, regularizer, dict(iter(method.hooks_where)))


def _explain_refusal(regularizer: str, method: Method) -> str:
    if not method.trains:
        return "which makes no gradient steps"
    if plugins.reads_general_rows(regularizer) and not method.makes_language_model:
        return "which has no language-model head to read general rows with"
    if _takes_somehow(method, regularizer):
        values = ", ".join(f"{name}: {value}" for name, value in method.hooks_where)
        return f"whose training takes it with {values} alone"
    return getattr(plugins.load("regularizers", regularizer), "WHY_NOT", "whose training does not take it")


def check_general_rows(path: str | None, where: str) -> Iterator[Problem]:
    """Refuse a file of general rows that is not there."""
    if path is not None and not path.startswith(spec.HUB) and not Path(path).is_file():
        yield describe_missing_file(Path(path), where, "general rows, each with a prompt and its answer")


_MOST_TRIALS = 64  # of a sweep, each a training of its own


def check_sweep(written: WrittenRecipe) -> Iterator[Problem]:
    """Refuse to try what is not a parameter, one value, a range that is none, or where nothing is trained."""
    recipe, method = written.recipe, written.method
    fields, key = method.params.model_fields, "search" if recipe.search else "sweep"
    if (n := prod(map(len, recipe.sweep.values()))) > _MOST_TRIALS:
        where = written.where("sweep")
        step = "sweep fewer values, or search: them"
        yield Problem(where, f"a sweep of {n:,} trials", f"at most {_MOST_TRIALS}", step)
    if not method.trains:
        yield from _check_prompts(written, key)
        return
    for name, values in (recipe.search or recipe.sweep).items():
        where = written.where(key, name)
        if not method.answers:
            found = (
                f"a {key} with the method {recipe.method}, which answers nothing that validation could score"
            )
            yield Problem(where, found, "one set of parameters", "choose by its held-out accuracy")
        elif name not in fields and method.params.model_config.get("extra") != "allow":
            yield Problem(where, f"a {key} of {name!r}", "a parameter", did_you_mean(name, fields))
        elif name in fields and fields[name].is_required():
            step = f"params: {{{name}: [{', '.join(map(str, values))}]}}, a candidate for each"
            yield Problem(where, f"a {key} of {name}, which has no default", "it in params", step)
        elif name in recipe.params:
            found = f"{name} in params and in {key}"
            yield Problem(where, found, "it in one of the two", "remove it from params")
        elif key == "search" and spec.is_span(values):
            try:
                spec.span_of(values)
            except ValueError as error:
                found, _, step = str(error).partition("; ")
                yield Problem(where, f"{name}: {found}", "a range with two ends", step)
        elif len(values) < 2:
            found = f"a {key} of {name} with {len(values)} values"
            yield Problem(where, found, "two values at least", f"add one, or write {name} in params")
    yield from _check_points(written, key)


def _check_points(written: WrittenRecipe, key: str) -> Iterator[Problem]:
    """Refuse values to try, then points of them whose values do not go together or with `params`."""
    recipe, method, tree = written.recipe, written.method, written.tree
    known = {name: values for name, values in recipe.tried.items() if name in method.params.model_fields}
    single: list[Problem] = []
    for name, values in known.items():
        for value in values:
            params, keys = {**recipe.params, name: value}, (*written.keys, key, name)
            problems = problems_of(method.params, params, tree, keys)
            single += [problem for problem in problems if problem.found.startswith(f"{name}:")]
    yield from single
    if single or prod(map(len, known.values())) > _MOST_TRIALS:
        return
    own = set(problems_of(method.params, recipe.params, tree, (*written.keys, "params")))
    points = (dict(zip(known, values, strict=True)) for values in product(*known.values()))
    together = (
        replace(problem, where=written.where(key))
        for point in points
        for problem in problems_of(method.params, {**recipe.params, **point}, tree, (*written.keys, "params"))
        if problem not in own
    )
    yield from dict.fromkeys(together)


def _check_prompts(written: WrittenRecipe, key: str) -> Iterator[Problem]:
    recipe, method = written.recipe, written.method
    for name, values in (recipe.search or recipe.sweep).items():
        where, at = written.where(key, name), (*written.keys, key, name)
        if name not in spec.PROMPTS or not method.makes_language_model:
            found = f"{name} in a {key} with the method {recipe.method}, which trains no language model"
            of_prompts = f"{', '.join(spec.PROMPTS[:-1])} or {spec.PROMPTS[-1]}"
            expected = of_prompts if method.makes_language_model else "a method that trains"
            yield Problem(where, found, expected, f"remove {name} from {key}")
        elif spec.is_span(values):
            yield Problem(where, f"a range of {name}", "a list of what is tried", "write each of them")
        elif len(values) < 2:
            found = f"a {key} of {name} with {len(values)} values"
            yield Problem(where, found, "two values at least", f"add one, or write {name} in the recipe")
        elif getattr(recipe, name) != spec.Recipe.model_fields[name].default:
            found = f"{name} in the recipe and in {key}"
            yield Problem(where, found, "it in one of the two", f"move {name} of the recipe into {key}")
        else:
            for value in values:
                yield from problems_of(spec.Recipe, {name: value}, written.tree, at)
    if recipe.subject_to:
        found = f"subject_to with the method {recipe.method}, whose weights forget nothing"
        yield Problem(written.where("subject_to"), found, "a method that trains", "remove subject_to")


TABLE = Path(__file__).with_name("recipe_ranges.toml")
BATCH = "batch"  # rows of a step
_RATE = "learning_rate"
_FACTORS = ("per_device_train_batch_size", "gradient_accumulation_steps")
_WARMUP = "warmup_steps"  # below 1 a share of all
SHARE = "warmup_share"
_KEYS = {BATCH: {*_FACTORS}, SHARE: {_WARMUP}}  # by setting, where it is not its own key
_BILLION = 1e9


class Range(NamedTuple):
    """Published range of a setting: of which training, for models of which size in billions, and its source.

    `training` is the kind that methods declare as `published_as`; `only` holds other settings that it needs.
    """

    training: str
    setting: str
    source: str
    low: float = -inf
    high: float = inf
    from_b: float = 0.0
    to_b: float = inf
    only: Mapping[str, Any] = {}

    def speaks_of(self, method: str, params: Mapping[str, Any], n_parameters: float) -> bool:
        """Tell whether the source speaks of such a training."""
        sized = self.from_b <= n_parameters / _BILLION <= self.to_b
        same = plugins.method(method).published_as == self.training
        return same and sized and all(params.get(k) == v for k, v in self.only.items())


@cache
def ranges() -> tuple[Range, ...]:
    """Read the table."""
    rows = tomllib.loads(TABLE.read_text("utf-8"))["range"]
    return tuple(Range(**row) for row in rows)


def lint(
    method: str, params: Mapping[str, Any], n_parameters: float, written: Collection[str] = ()
) -> Iterator[str]:
    """Say which settings of a training lie outside of what was published, and by whom; `params` are whole.

    Those that are not `written` are named as defaults. A default rate is named too where all that was
    published is of other sizes.
    """
    rows, steps = (params.get(name) for name in _FACTORS)
    warmup = params.get(_WARMUP) or None  # none at all is a choice of its own
    known = {**params, BATCH: rows * steps if rows and steps else None}
    known |= {SHARE: warmup, _WARMUP: None} if warmup and warmup < 1 else {_WARMUP: warmup}
    speaking = [one for one in ranges() if one.speaks_of(method, params, n_parameters)]
    for setting in dict.fromkeys(one.setting for one in speaking):
        value, sources = known.get(setting), [one for one in speaking if one.setting == setting]
        if value is None or min(one.low for one in sources) <= value <= max(one.high for one in sources):
            continue
        place = "below" if value < min(one.low for one in sources) else "above"
        said = "; ".join(f"{_span(one)} ({one.source})" for one in sources)
        name = {BATCH: "rows of a step", SHARE: "share of warm-up steps"}.get(setting, setting)
        default = ", the default," if _KEYS.get(setting, {setting}).isdisjoint(written) else ""
        yield f"{name} {value:g}{default} is {place} what was published for {_size(n_parameters)}: {said}"
    training = plugins.method(method).published_as
    others = [one for one in ranges() if one.setting == _RATE and one.training == training]
    if others and _RATE not in {*written, *(one.setting for one in speaking)}:
        sizes = f"{min(one.from_b for one in others):g} to {max(one.to_b for one in others):g} B"
        said = f"is assumed for {_size(n_parameters)}: what was published is of models of {sizes}"
        yield f"{_RATE} {params[_RATE]:g}, the default, {said}"


def _span(of: Range) -> str:
    if of.low == of.high:
        return f"{of.low:g}"
    if of.low == -inf:
        return f"at most {of.high:g}"
    return f"at least {of.low:g}" if of.high == inf else f"{of.low:g} to {of.high:g}"


def _size(n_parameters: float) -> str:
    size = f"{n_parameters / _BILLION:.3g} B" if n_parameters >= _BILLION else f"{n_parameters / 1e6:.3g} M"
    return f"a model of {size} parameters"
