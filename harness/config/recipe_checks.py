"""Validation of a candidate's recipe: its weights, files, decoding, regularizers, and values to try.

Invariant: a check reads only what could be parsed and never stops another check; an accepted recipe can be
made.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from harness import plugins, spec
from harness.config.files import GridMember, describe_missing_file
from harness.config.rubrics import try_to_read
from harness.config.yaml_loading import Keys, Tree, mapping, problems_of, read_valid
from harness.errors import Problem, did_you_mean
from harness.plugins import Method

_NONE = "no weights of its own"
_WITH_ARTICLE = {
    "adapter": "an adapter",
    "delta": "a delta of a form of its own",
    "model": "a whole model",
    "adapter or model": "an adapter or a whole model",
    "adapter or delta or model": "an adapter, a delta or a whole model",
    "reward": "a reward model",
    **dict.fromkeys(("classifier", "head", "embedding"), "a classifier"),
    "endpoint": "no weights here",
    "artefact": "a file that is served",
}
# Keys that only some methods accept: a test of the method, and why other methods refuse the key.
_TAKEN_BY: Mapping[str, tuple[Callable[[Method], Any], str]] = {
    "init_from": (lambda method: method.init_from, "starts at the base"),
    "reward": (lambda method: method.rewarded, "trains on none"),
    "merges": (lambda method: method.merges, "merges nothing"),
    "path": (lambda method: method.made_elsewhere, "makes its own weights"),
    **dict.fromkeys(("train", "mix"), (lambda method: method.draws_from, "trains on no rows")),
    "quantization": (lambda method: method.trains and method.makes == "adapter", "trains no adapter"),
}
GENERAL_ROWS = "general rows, each with a prompt and its answer"
_GREEDY = "remove decoding"
_MOST_TRIALS = 64  # of a sweep, each a training of its own


class WrittenRecipe(NamedTuple):
    """A candidate's recipe as far as it could be read, with all `members` of the file's grids.

    The files of its rows must exist only if a `selected` candidate (None: any) needs it.
    """

    name: str
    recipe: spec.Recipe
    members: Mapping[str, GridMember]
    tree: Tree
    selected: Collection[str] | None

    @property
    def method(self) -> Method:
        """The recipe's method, whose name must be known."""
        return plugins.method(self.recipe.method)

    @property
    def keys(self) -> Keys:
        """The candidate's keys in the file; a member of a grid has those of the grid."""
        return "candidates", self.members[self.name].source

    def where(self, *keys: str) -> str:
        """Return `file:line` of one of the recipe's values."""
        return self.tree.where((*self.keys, *keys))

    def kind_of(self, source: str) -> str:
        """Return the kind of weights that a candidate makes; empty for none or an unknown method."""
        recipe = mapping(self.members[source].recipe)
        method = recipe.get("method", spec.BASE)
        if recipe.get("weights_of") or method not in plugins.names("methods"):
            return ""
        kind, init = plugins.method(method).makes, str(recipe.get("init_from"))
        takes_any = plugins.OR in kind and init in self.members and source not in self.ancestors(source)
        return (self.kind_of(init) if takes_any else "") or kind

    def ancestors(self, name: str) -> set[str]:
        """Return the candidates that make a candidate's weights or choose its answers, also indirectly."""
        ancestors, to_visit = set[str](), [name]
        while to_visit:
            recipe = read_valid(spec.Recipe, self.members[to_visit.pop()].recipe)
            parents = ({*recipe.references} & self.members.keys() if recipe else set()) - ancestors
            ancestors |= parents
            to_visit += parents
        return ancestors

    def unknown(self, key: str, source: str) -> Problem:
        """Build the problem of an unknown candidate name."""
        grid = ", ".join(member for member, m in self.members.items() if m.source == source)
        expected = "one candidate of that grid" if grid else "the name of another candidate"
        step = f"one of: {grid}" if grid else did_you_mean(source, self.members.keys() - {self.name})
        return Problem(self.where(key), f"unknown candidate {source!r}", expected, step)

    def of_another_kind(self, key: str, source: str, wanted_kind: str, step: str) -> Problem:
        """Build the problem of a candidate whose weights are not of the wanted kind."""
        made_text, wanted_text = (_WITH_ARTICLE.get(k, _NONE) for k in (self.kind_of(source), wanted_kind))
        expected = f"a candidate that makes {wanted_text}"
        return Problem(self.where(key), f"{source}, which makes {made_text}", expected, step)


def check_recipe(written: WrittenRecipe, target: spec.Task | None) -> Iterator[Problem]:
    """Yield the problems of a candidate; its decoding is checked against the target."""
    yield from _check_weights_of_and_role(written)
    if written.recipe.method in plugins.names("methods"):
        for key, (takes, why) in _TAKEN_BY.items():
            if getattr(written.recipe, key) and not takes(written.method):
                takers = [name for name in plugins.names("methods") if takes(plugins.method(name))]
                found = f"{key} with the method {written.recipe.method}, which {why}"
                expected = f"{'one of the methods' if len(takers) > 1 else 'the method'} {', '.join(takers)}"
                step = f"remove {key}, or set method: {'lora' if 'lora' in takers else takers[0]}"
                yield Problem(written.where(key), found, expected, step)
        yield from _check_sources(written)
        yield from _check_reward(written)
        yield from _check_files(written)
        recipe, method, tree = written.recipe, written.method, written.tree
        key, tried_values = ("search", recipe.search) if recipe.search else ("sweep", recipe.sweep)
        if (n := prod(map(len, recipe.sweep.values()))) > _MOST_TRIALS:
            step = "sweep fewer values, or search: them"
            yield Problem(written.where("sweep"), f"a sweep of {n:,} trials", f"at most {_MOST_TRIALS}", step)
        inside = "params" if method.trains else "the recipe"
        check = _check_parameter if method.trains else _check_prompt
        for name, values in tried_values.items():
            where = written.where(key, name)
            if problem := check(written, key, name, values):
                yield problem
            elif not spec.is_span(values) and len(values) < 2:
                found = f"a {key} of {name} with {len(values)} values"
                yield Problem(where, found, "two values at least", f"add one, or write {name} in {inside}")
            elif not method.trains:
                for value in values:
                    yield from problems_of(spec.Recipe, {name: value}, tree, (*written.keys, key, name))
        if method.trains:
            yield from _check_points(written, key)
        elif recipe.subject_to:
            found = f"subject_to with the method {recipe.method}, whose weights forget nothing"
            yield Problem(written.where("subject_to"), found, "a method that trains", "remove subject_to")
        yield from _check_regularizers(written)
    yield from _check_decoding(written, target)


def _check_weights_of_and_role(written: WrittenRecipe) -> Iterator[Problem]:
    name, recipe, members = written.name, written.recipe, written.members
    source, where = recipe.weights_of, written.where("weights_of")
    lender = members.get(source or "")
    if source == name:
        found = f"{name} taking its own weights"
        yield Problem(where, found, "the name of another candidate", _others(written))
    elif source is not None and lender is None:
        yield written.unknown("weights_of", source)
    elif lender and mapping(lender.recipe).get("weights_of"):
        found = f"weights of {source}, which has none of its own"
        yield Problem(where, found, "a candidate with a method", f"name the one {source} takes them of")
    made_by = mapping(lender.recipe).get("method", spec.BASE) if lender else recipe.method
    is_known = made_by in plugins.names("methods")
    if recipe.role == "baseline" and is_known and not plugins.method(made_by).makes_nothing:
        expected = f"a model made elsewhere (method: {' or '.join(plugins.methods(makes_nothing=True))})"
        found = f"role: baseline of the method {made_by}, whose weights are made here"
        yield Problem(written.where("role"), found, expected, "leave out role")
    made_kind = written.kind_of(source if source and lender else name)
    if recipe.serve_on is not None and is_known and "adapter" not in made_kind.split(plugins.OR):
        found, expected = f"serve_on for {_WITH_ARTICLE.get(made_kind, _NONE)}", "an adapter on another base"
        yield Problem(written.where("serve_on"), found, expected, "remove serve_on")


def _others(written: WrittenRecipe) -> str:
    names = sorted(written.members.keys() - {written.name})
    return f"one of: {', '.join(names)}" if names else "give it a method"


def _check_sources(written: WrittenRecipe) -> Iterator[Problem]:
    """Yield the problems of the candidates that a recipe starts from or merges."""
    name, recipe, method = written.name, written.recipe, written.method
    source, wanted_kinds = recipe.init_from, method.init_from.split(plugins.OR)
    if source is None or not method.init_from:
        pass
    elif source not in written.members:
        yield written.unknown("init_from", source)
    elif name in written.ancestors(name):
        found, expected = f"{name} starting from itself", "a candidate that is made before it"
        yield Problem(written.where("init_from"), found, expected, _others(written))
    elif not {*wanted_kinds} & {*written.kind_of(source).split(plugins.OR)}:
        trainers = (plugins.methods(trains_on_rows=True, makes=kind) for kind in wanted_kinds)
        step = f"name a candidate with the method {' or '.join(chain.from_iterable(trainers))}"
        yield written.of_another_kind("init_from", source, method.init_from, step)
    elif shape := ", ".join(sorted(recipe.params.keys() & set(method.fixed))):
        found = f"{shape} of an adapter that {source} has made already"
        yield Problem(written.where("params"), found, "its shape as it is", f"remove {shape}")
    merges = recipe.merges if method.merges else ()
    if method.merges and (len(set(merges)) < 2 or len(set(merges)) < len(merges)):
        found = f"{recipe.method} of {', '.join(merges) or 'nothing'}"
        step = "add merges: [lora, other], the names of candidates"
        yield Problem(written.where("merges"), found, "two candidates or more, each once", step)
    for merged in merges:
        if merged not in written.members:
            yield written.unknown("merges", merged)
        elif name == merged or name in written.ancestors(merged):
            found, step = f"{name} merging itself", f"leave {merged} out of merges"
            yield Problem(written.where("merges"), found, "candidates that are made before it", step)
        elif method.makes not in written.kind_of(merged).split(plugins.OR):
            yield written.of_another_kind("merges", merged, method.makes, "name another")


def _check_reward(written: WrittenRecipe) -> Iterator[Problem]:
    reward, members = written.recipe.reward, written.members
    expected = "a candidate that makes a reward model, one of our metrics, or a Python file"
    if not written.method.rewarded:
        return
    if reward is None:
        found = f"{written.recipe.method} without a reward"
        yield Problem(written.where("method"), found, expected, "add reward: exact_match")
    elif spec.is_path(reward):
        if not Path(reward).is_file():
            expected_file = "a Python file with a function reward, or metric"
            yield describe_missing_file(Path(reward), written.where("reward"), expected_file)
    elif reward in members:
        if written.kind_of(reward) != "reward":
            step = f"one with the method {' or '.join(plugins.methods(makes='reward'))}"
            yield written.of_another_kind("reward", reward, "reward", step)
    elif spec.metric_plugin(reward) not in (metric_names := plugins.names("metrics")):
        makers = {candidate for candidate in members if written.kind_of(candidate) == "reward"}
        step = did_you_mean(reward, {*metric_names, *makers})
        yield Problem(written.where("reward"), f"unknown reward {reward!r}", expected, step)


def _check_files(written: WrittenRecipe) -> Iterator[Problem]:
    recipe, method = written.recipe, written.method
    expected, is_made_elsewhere = "the folder of the weights", method.made_elsewhere
    if is_made_elsewhere and recipe.path is None:
        found = f"{recipe.method} without path"
        yield Problem(written.where("method"), found, expected, "add path: ./the-folder")
    elif is_made_elsewhere and recipe.path and recipe.path.startswith(spec.HUB):
        if method.makes != "model":
            step = "download it, or merge it and name method: model"
            yield Problem(written.where("path"), f"{recipe.method} of the hub", expected, step)
    elif is_made_elsewhere and recipe.path:
        path = Path(recipe.path)
        if not path.is_dir() and not (method.makes == "artefact" and path.is_file()):
            yield describe_missing_file(path, written.where("path"), expected)
    if len(set(recipe.train)) < len(recipe.train):
        yield Problem(written.where("train"), "a file twice in train", "every file once", "remove one")
    selected, name = written.selected, written.name
    is_needed = selected is None or any(name in {s, *written.ancestors(s)} for s in selected)
    for file in recipe.row_paths if is_needed else ():
        yield from check_rows_file(file, written.where("mix" if recipe.mix else "train"), "rows to train on")


def check_rows_file(path: str | None, where: str, expected: str) -> Iterator[Problem]:
    """Yield the problem of a missing file of rows; data sets of the hub are looked up later."""
    if path is not None and not path.startswith(spec.HUB) and not Path(path).is_file():
        yield describe_missing_file(Path(path), where, expected)


def _check_decoding(written: WrittenRecipe, target: spec.Task | None) -> Iterator[Problem]:
    recipe, members = written.recipe, written.members
    if (decoding := recipe.sampling) is None:
        return
    where, sampling = written.where("decoding"), f"temperature {decoding.temperature:g}"
    if recipe.answer == "rank":
        yield Problem(where, f"{sampling} and answer: rank, which draws nothing", "answer: generate", _GREEDY)
    if target and target.kind != "generate":
        found = f"{sampling} on a target of kind {target.kind}, which draws nothing"
        yield Problem(where, found, "a target of kind generate", _GREEDY)
    # Methods that answer only with labels, and endpoints that return no log-probabilities.
    source = members.get(recipe.weights_of or "")
    recipe_data = mapping(source.recipe) if source else recipe.model_dump()
    method = recipe_data.get("method", spec.BASE)
    if method in plugins.names("methods"):
        if plugins.method(method).makes not in plugins.LANGUAGE_MODELS:
            found = f"{sampling} of the method {method}, which answers with a label"
            yield Problem(where, found, "a language model", _GREEDY)
        is_chat = mapping(recipe_data.get("params")).get("protocol") == "chat"
        if decoding.by == spec.MEAN_LOGPROB and plugins.method(method).is_remote and is_chat:
            found = "by: mean_logprob of an endpoint that is asked by chat, which gives none of them"
            yield Problem(where, found, "protocol: completions", "choose: majority, or by: judge:./FILE.yaml")
    where_by = written.where("decoding", "by")
    if reward := decoding.reward_model:
        expected = f"{spec.MEAN_LOGPROB}, {spec.JUDGE}./FILE.yaml, or a candidate that makes a reward model"
        makers = plugins.methods(makes="reward")
        if reward not in members:
            is_metric = reward in plugins.names("metrics")
            why = "needs the reference, and no user has it" if is_metric else "is not a candidate"
            reward_models = {name for name, m in members.items() if mapping(m.recipe).get("method") in makers}
            found = f"the best by {reward!r}, which {why}"
            yield Problem(where_by, found, expected, did_you_mean(reward, reward_models))
        elif (made_by := mapping(members[reward].recipe).get("method", spec.BASE)) not in makers:
            found = f"the best by {reward}, whose method {made_by} makes no reward model"
            yield Problem(where_by, found, expected, f"a candidate with the method {' or '.join(makers)}")
    elif target and decoding.by and decoding.by != spec.MEAN_LOGPROB:
        name = spec.metric_name(decoding.by)
        judge = next((metric for metric in target.metrics if spec.metric_name(metric) == name), None)
        if judge is None:
            found = f"{decoding.by}, which is none of the target's metrics"
            yield Problem(where_by, found, "one of them", "list it there")
            return
        if name == target.primary_metric:
            found = f"{name}, which chooses the best answer and is the primary metric"
            expected = "another one to decide: a judge that scores its own choice counts its errors as a gain"
            step = "write primary: with another metric, or by: mean_logprob"
            yield Problem(where_by, found, expected, step)
        rubric = try_to_read(judge, Path(), where_by)  # its problems are reported with the task's metrics
        if not isinstance(rubric, list) and rubric.needs_references:
            found = f"{name}, whose rubric shows the judge the reference"
            yield Problem(where_by, found, "what a user could choose by, who has none", "reference: false")


def _check_regularizers(written: WrittenRecipe) -> Iterator[Problem]:
    recipe, method = written.recipe, written.method
    regularizers, hooks = plugins.names("regularizers"), dict(iter(method.hooks_where))

    def takes_somehow(method: Method, name: str) -> bool:
        return plugins.takes(method, name, dict(iter(method.hooks_where)))

    def find_refusal(name: str) -> str:
        tried_points = ({key: value} for key, values in recipe.tried.items() for value in values)
        refusals = (plugins.refuses(name, {**recipe.params, **point}) for point in ({}, *tried_points))
        return next(filter(None, refusals), "")

    # The parameters, with each tried value of a parameter that decides which hooks the method calls.
    values_by_name = {name: recipe.tried[name] for name in hooks if name in recipe.tried}
    points = product(*values_by_name.values())
    settings = [recipe.params | dict(zip(values_by_name, values, strict=True)) for values in points]
    for name, params in recipe.regularize.items():
        where = written.where("regularize", name)
        if name in regularizers and not all(plugins.takes(method, name, setting) for setting in settings):
            if not method.trains:
                why = "which makes no gradient steps"
            elif plugins.reads_general_rows(name) and not method.makes_language_model:
                why = "which has no language-model head to read general rows with"
            elif takes_somehow(method, name):
                values = ", ".join(f"{key}: {value}" for key, value in method.hooks_where)
                why = f"whose training takes it with {values} alone"
            else:
                plugin = plugins.load("regularizers", name)
                why = getattr(plugin, "WHY_NOT", "whose training does not take it")
            takers = ", ".join(m for m in plugins.names("methods") if takes_somehow(plugins.method(m), name))
            found = f"{name} with the method {recipe.method}, {why}"
            yield Problem(where, found, f"one of the methods {takers}", f"remove {name}")
        elif name in regularizers and (refusal := find_refusal(name)):
            usable = (n for n in plugins.penalties(method, recipe.params) if not find_refusal(n))
            penalties = " or ".join(usable)
            step = f"remove {name}{f', or take {penalties}' if penalties else ''}"
            expected = "an adapter whose matrices are added to the base's"
            yield Problem(where, f"{name} with {refusal}", expected, step)
        if isinstance(path := params.get("data"), str):
            yield from check_rows_file(path, where, GENERAL_ROWS)


def _check_parameter(written: WrittenRecipe, key: str, name: str, values: list[Any]) -> Problem | None:
    recipe, method, where = written.recipe, written.method, written.where(key, name)
    fields = method.params.model_fields
    if not method.answers:
        found = f"a {key} with the method {recipe.method}, which answers nothing that validation could score"
        return Problem(where, found, "one set of parameters", "choose by its held-out accuracy")
    if name not in fields and method.params.model_config.get("extra") != "allow":
        return Problem(where, f"a {key} of {name!r}", "a parameter", did_you_mean(name, fields))
    if name in fields and fields[name].is_required():
        step = f"params: {{{name}: [{', '.join(map(str, values))}]}}, a candidate for each"
        return Problem(where, f"a {key} of {name}, which has no default", "it in params", step)
    if name in recipe.params:
        found = f"{name} in params and in {key}"
        return Problem(where, found, "it in one of the two", "remove it from params")
    if key == "search" and spec.is_span(values):
        try:
            spec.span_of(values)
        except ValueError as error:
            found, _, step = str(error).partition("; ")
            return Problem(where, f"{name}: {found}", "a range with two ends", step)
    return None


def _check_prompt(written: WrittenRecipe, key: str, name: str, values: list[Any]) -> Problem | None:
    recipe, method, where = written.recipe, written.method, written.where(key, name)
    if name not in spec.PROMPTS or not method.makes_language_model:
        found = f"{name} in a {key} with the method {recipe.method}, which trains no language model"
        prompt_keys = f"{', '.join(spec.PROMPTS[:-1])} or {spec.PROMPTS[-1]}"
        expected = prompt_keys if method.makes_language_model else "a method that trains"
        return Problem(where, found, expected, f"remove {name} from {key}")
    if spec.is_span(values):
        return Problem(where, f"a range of {name}", "a list of what is tried", "write each of them")
    if len(values) > 1 and getattr(recipe, name) != spec.Recipe.model_fields[name].default:
        found = f"{name} in the recipe and in {key}"
        return Problem(where, found, "it in one of the two", f"move {name} of the recipe into {key}")
    return None


def _check_points(written: WrittenRecipe, key: str) -> Iterator[Problem]:
    """Yield problems of single tried values; without any, of combinations of them and with `params`."""
    recipe, method, tree = written.recipe, written.method, written.tree
    tried_values = {n: values for n, values in recipe.tried.items() if n in method.params.model_fields}

    def find(params: Mapping[str, Any], *keys: str) -> list[Problem]:
        return problems_of(method.params, {**recipe.params, **params}, tree, (*written.keys, *keys))

    tried = ((name, value) for name, values in tried_values.items() for value in values)
    found = ((name, problem) for name, value in tried for problem in find({name: value}, key, name))
    value_problems = [problem for name, problem in found if problem.found.startswith(f"{name}:")]
    yield from value_problems
    if not value_problems and prod(map(len, tried_values.values())) <= _MOST_TRIALS:
        params_problems = set(find({}, "params"))
        points = (dict(zip(tried_values, values, strict=True)) for values in product(*tried_values.values()))
        joint_problems = (p for point in points for p in find(point, "params") if p not in params_problems)
        yield from dict.fromkeys(replace(problem, where=written.where(key)) for problem in joint_problems)
