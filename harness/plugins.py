"""Plugins: every file in a plugin folder is one, named like the file, or declares several.

A file that declares several maps their names to its classes: `PLUGINS = {"precision": Precision}`. A class
has what the file of one plugin has.

Invariant: names come from the folder's listing and these lines, and only the file in use is imported.
"""

import ast
import re
import tokenize
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from harness.errors import Problem, UserError, did_you_mean, refuse_unreadable
from harness.provenance import code_versions, digest_code
from harness.records import TrackedPoint
from harness.spec import Recipe, RescuePolicy, Spec

LANGUAGE_MODELS = (  # kinds of weights that generate text
    *("base", "adapter", "delta", "model", "endpoint", "artefact"),
    *("adapter or model", "adapter or delta or model"),
)
OR = " or "  # separates alternative kinds of weights
# What a regulariser may do to a training.
HOOKS = ("mix", "prepare", "penalty", "step", "select", "arguments", "smoothing")
TRAINING_STEPS = {"learning_rate": 5.0, "rank": 6.0}  # steps of a rescue for any training: their places
KINDS = ("methods", "prompting", "metrics", "regularizers", "exports")

_ONE = {kind: kind.removesuffix("s") for kind in KINDS}


_Texts = Literal["base", "adapter", "delta", "model", "adapter or model", "adapter or delta or model"]
Makes = Literal[_Texts, "classifier", "endpoint", "artefact", "reward", "head", "embedding"]


class Situation(NamedTuple):
    """A new experiment as `harness init` sees it: the content of its data and the size of its base.

    `thumbs` are answers rated up or down, used instead of pairs; `adapter` names the candidate that trains
    one.
    """

    closed_labels: bool
    pairs: bool
    n_parameters: float | None
    adapter: str = ""
    thumbs: bool = False

    @property
    def billions(self) -> float:
        """Billions of parameters of the base; seven where they are unknown."""
        return (self.n_parameters or 7e9) / 1e9


class TrialSetting(NamedTuple):
    """A plugin's setting for a rescue to try: its parameters, a mark for the trial's name, a description.

    `merges` names the candidates whose adapters are merged with that of the fine-tune. `leaves_out` matches
    modules that a new adapter leaves out if its training does not support the plugin.
    """

    params: dict[str, Any]
    mark: str
    says: str
    merges: tuple[str, ...] = ()
    leaves_out: str = ""


class RescueSituation(NamedTuple):
    """A fine-tune to rescue, as seen by a plugin that proposes settings.

    `params` are those of its method, merged over those of the adapter that it starts from; `present` are
    those of the regulariser itself. `others` maps the other adapters of its base to their methods'
    parameters. `margin` is the share of capability that may be lost; `sign` is −1 if lower target scores are
    better.
    """

    policy: RescuePolicy
    params: Mapping[str, Any]
    n_layers: int | None = None
    present: Mapping[str, Any] | None = None
    others: Mapping[str, Mapping[str, Any]] = {}
    tracked: tuple[TrackedPoint, ...] = ()
    margin: float = 0.0
    sign: int = 1
    makes: str = ""


class InitWeights(NamedTuple):
    """Weights to start from, before they exist: their recipe, and the adapter's configuration if known."""

    recipe: Recipe
    adapter: Mapping[str, Any]


class RescueStep(NamedTuple):
    """Step of a rescue that a plugin declares: its name in `rescue.steps`, and its settings.

    `settings(situation)` lists settings from weak to strong, or says why there are none. Steps without
    training come first; within each group they are ordered by `place`.
    """

    name: str
    settings: Callable[[RescueSituation], Sequence[TrialSetting] | str]
    place: float = inf


class MethodAlternative(NamedTuple):
    """A method as an alternative to LoRA: its parameters, and what it is chosen for; it adds no latency."""

    params: dict[str, Any]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to make weights, as its file declares it.

    `makes` is the kind of weights; a `delta` is in a format of our own (`models.deltas`), a reward model
    answers nothing. `trains`: a language model is trained here, with parameters that extend `LoopParams`.
    `draws_from` is the data file that it reads; `unpaired` rows of `pairs` may have thumbs. `seeded`: another
    seed makes other weights. `quantization` is that of the base, `made_elsewhere` takes finished weights.
    `interpolates` marks weights between the base and `init_from`, at the share `scale`. Its training calls
    `hooks`, and those of `hooks_where` by a parameter's name and value. `rewarded` trains on the recipe's
    `reward`. `published_as` is its kind in `config/recipe_ranges.toml`. `loops` are the concerns of
    `code_versions.toml` whose code it runs besides its file.

    `fit(context, params)` makes the weights. `reads(params)` digests further files. `proposal(situation)`
    returns the recipe keys with which `harness init` proposes the method, or None; `alternative` names it
    next to the chosen one. `rescue` repairs the weights of a fine-tune (its `init_from` or `merges`) without
    training.

    Checks before anything runs: `problems(recipe, base, where)` yields obstacles, `merge_problems(recipe,
    adapters, where)` those in the configurations of merged adapters, `init_problems(params, init, where)`
    those to starting from weights. Of an adapter, `n_parameters(shape, params)` counts the parameters on a
    model, `lower_rank(params, by)` and `leave_out(params, modules)` return the parameters of a smaller one,
    empty if there is none; those in `fixed` are settled by `init_from`. `teacher(params)` is a model that is
    in memory with the base, or None; `extra_tokens(params, base, rows, tokens)` is the most that is read and
    generated besides the trained tokens.
    """

    params: type[Any]
    fit: Callable[[Any, Any], Any]
    makes: Makes
    trains: bool = False
    draws_from: Literal["", "train", "pairs"] = ""
    unpaired: bool = False
    seeded: bool = False
    quantization: Literal["", "nf4", "int8"] = ""
    init_from: Literal["", "adapter", "model", "adapter or delta or model"] = ""
    merges: bool = False
    made_elsewhere: bool = False
    interpolates: bool = False
    hooks: tuple[str, ...] = ()
    hooks_where: Mapping[tuple[str, Any], tuple[str, ...]] = field(default_factory=dict)
    rewarded: bool = False
    published_as: str = ""
    data_parallel: bool = False
    loops: tuple[str, ...] = ()
    reads: Callable[[Any], str] = lambda params: ""
    problems: Callable[[Recipe, Any, str], Iterable[Problem]] = lambda recipe, base, where: ()
    merge_problems: Callable[[Recipe, Any, str], Iterable[Problem]] = lambda recipe, adapters, where: ()
    init_problems: Callable[[Any, InitWeights, str], Iterable[Problem]] = lambda params, init, where: ()
    n_parameters: Callable[[Any, Any], int] = lambda shape, params: 0
    lower_rank: Callable[[Any, int], dict[str, Any]] = lambda params, by: {}
    leave_out: Callable[[Any, str], dict[str, Any]] = lambda params, modules: {}
    fixed: tuple[str, ...] = ()
    teacher: Callable[[Any], Any] = lambda params: None
    extra_tokens: Callable[[Any, Any, int, int], tuple[int, int]] = lambda params, base, rows, tokens: (0, 0)
    proposal: Callable[[Situation], dict[str, Any] | None] = lambda situation: None
    alternative: MethodAlternative | None = None
    rescue: RescueStep | None = None

    @property
    def makes_language_model(self) -> bool:
        """Whether the weights are a language model, which has a base and capabilities to lose."""
        return self.makes in LANGUAGE_MODELS

    @property
    def answers(self) -> bool:
        """Whether its weights answer tasks, so that they can be compared with others."""
        return self.makes != "reward"

    @property
    def is_remote(self) -> bool:
        """Whether its weights are behind an endpoint."""
        return self.makes == "endpoint"

    @property
    def keeps_base(self) -> bool:
        """Whether its weights are the base's own."""
        return self.makes == "base"

    @property
    def makes_nothing(self) -> bool:
        """Whether its weights exist already: the base's own, at an endpoint or in a folder."""
        return self.keeps_base or self.is_remote or self.made_elsewhere

    @property
    def tunes(self) -> bool:
        """Whether the weights are a language model's and may differ from the base's."""
        return self.makes_language_model and not self.keeps_base

    @property
    def trains_on_rows(self) -> bool:
        """Whether it trains a language model on rows, into which others can be mixed."""
        return self.trains and self.draws_from == "train"


class Place(NamedTuple):
    """Place where a plugin is declared: its file, and the class in it; the file itself without one."""

    file: Path
    declared: str = ""


_SEVERAL = re.compile(r"^PLUGINS\b[^=\n]*=(.*?)(?=^[^\s})]|\Z)", re.MULTILINE | re.DOTALL)


def names(kind: str) -> list[str]:
    """List the plugins of a kind, sorted; files with a leading underscore do not count."""
    return list(places(kind))


def places(kind: str) -> dict[str, Place]:
    """Map the plugins of a kind to their places, sorted by name, without importing them."""
    folder = Path(__file__).parent / kind
    return _places_in(folder, folder.stat().st_mtime_ns)


@cache
def _places_in(folder: Path, _changed: int) -> dict[str, Place]:
    place_by_name: dict[str, Place] = {}
    for file in sorted(file for file in folder.glob("[!_.]*.py") if file.is_file()):
        with refuse_unreadable(file, "a Python file", "repair the file, or move it out of the folder"):
            try:
                with tokenize.open(file) as text:
                    plugins_match = _SEVERAL.search(text.read())
            except SyntaxError as error:  # of the line that names its encoding
                raise ValueError(error.msg) from None
        declared = dict[str, Place]()
        if plugins_match:
            try:
                written: Any = ast.parse(plugins_match[1].strip(), mode="eval").body
                pairs = zip(written.keys, written.values, strict=True)
                declared = {ast.literal_eval(key): Place(file, value.id) for key, value in pairs}
            except (SyntaxError, ValueError, AttributeError):
                expected = 'PLUGINS = {"name": Class, …}, with classes of the file'
                found = "a PLUGINS that is not understood"
                raise UserError(str(file), found, expected, "write it so") from None
        for name, place in (declared or {file.stem: Place(file)}).items():
            if name in place_by_name:
                twice = f"{name!r}, which {place_by_name[name].file.name} declares too"
                raise UserError(str(file), twice, "a name of its own", "rename one of them")
            place_by_name[name] = place
    return dict(sorted(place_by_name.items()))


def load(kind: str, name: str, where: str = "") -> Any:
    """Import one plugin by name, or a user's own metric by file path; `where` is the error's location."""
    if name.endswith(".py") and kind == "metrics":
        expected = "a Python file with what docs/howto/extend.md shows of a metric"
        own_module = load_file(Path(name), expected, where or "metrics")
        if not callable(getattr(own_module, "metric", None)):
            raise UserError(name, "no function 'metric'", expected, "define metric(task)")
        return own_module
    if name.endswith(".py"):
        found, expected = f"a file of your own, {name}", f"a {_ONE[kind]} in harness/{kind}/, by its name"
        raise UserError(where or kind, found, expected, f"copy it to {Path(__file__).parent / kind}")
    if (place := places(kind).get(name)) is None:
        raise UserError(unknown(kind, name, where))
    module = import_module(f"harness.{kind}.{place.file.stem}")
    return getattr(module, place.declared) if place.declared else module


@cache
def method(name: str) -> Method:
    """Return what a method declares."""
    declared: Method = load("methods", name).METHOD
    return declared


@cache
def find_method(name: str) -> Method:
    """Return what the method of a stored run declares; a fine-tune is assumed if its file is gone."""
    if name in names("methods"):
        return method(name)
    return Method(params=Spec, fit=load, makes="model", trains=True, seeded=True)


def methods(**traits: Any) -> list[str]:
    """List the methods whose declarations have these values, sorted by name."""
    declarations = {name: method(name) for name in names("methods")}
    return [name for name, m in declarations.items() if all(getattr(m, t) == v for t, v in traits.items())]


def alternatives() -> dict[str, MethodAlternative]:
    """Map the methods that declare themselves an alternative to LoRA to what they declare."""
    declared = {name: method(name).alternative for name in names("methods")}
    return {name: alternative for name, alternative in declared.items() if alternative}


def version(kind: str, name: str) -> int | str:
    """Return a plugin's version in `code_versions.toml`, or the digest of a file that is not listed there."""
    if listed := code_versions().get(f"{kind}/{name}"):
        return listed.version
    return digest_code(Path(name) if name.endswith(".py") else places(kind)[name].file)


def takes(method: Method, regularizer: str, params: Mapping[str, Any] = {}) -> bool:
    """Tell whether a method's training with these parameters calls every hook of a regulariser."""
    plugin = load("regularizers", regularizer)
    if reads_general_rows(regularizer) and not method.makes_language_model:
        return False
    called = set(method.hooks)
    for (name, value), hooks in method.hooks_where.items():
        called |= set(hooks) if params.get(name) == value else set()
    return {hook for hook in HOOKS if hasattr(plugin, hook)} <= called


def reads_general_rows(regularizer: str) -> bool:
    """Tell whether a regulariser trains on general rows, or measures something on them."""
    return hasattr(load("regularizers", regularizer), "sample")


def refuses(regularizer: str, params: Mapping[str, Any]) -> str:
    """Say which of a method's parameters a regulariser does not support; empty if it supports all."""
    problem: str = getattr(load("regularizers", regularizer), "problem", lambda _: "")(params)
    return problem


def penalties(method: Method, params: Mapping[str, Any]) -> list[str]:
    """List the regularisers that a training with these parameters can use as penalties on its loss."""
    with_penalty = [name for name in names("regularizers") if hasattr(load("regularizers", name), "penalty")]
    return [name for name in with_penalty if takes(method, name, params)]


def list_rescue_methods(step: str) -> list[str]:
    """List the methods that repair weights without training, in a step of a rescue."""
    return [name for name in names("methods") if (step_of := method(name).rescue) and step_of.name == step]


def map_rescue_regularizers(step: str) -> dict[str, RescueStep]:
    """Map the regularisers that declare this step of a rescue to their declarations."""
    declared = {name: getattr(load("regularizers", name), "RESCUE", None) for name in names("regularizers")}
    return {name: rescue for name, rescue in declared.items() if rescue and rescue.name == step}


def rescue_steps() -> tuple[str, ...]:
    """List the steps that a rescue may take, in their default order."""
    method_steps = [method(name).rescue for name in names("methods")]
    regularizer_steps = [getattr(load("regularizers", n), "RESCUE", None) for n in names("regularizers")]
    ordered = [(False, step.place, step.name) for step in method_steps if step]
    ordered += [(True, step.place, step.name) for step in regularizer_steps if step]
    ordered += [(True, place, name) for name, place in TRAINING_STEPS.items()]
    return tuple(dict.fromkeys(name for _, _, name in sorted(ordered)))


def load_file(path: Path, expected: str, where: str) -> ModuleType:
    """Run a user's own Python file; UserError, with the line at fault, if it cannot be run."""
    module_spec = spec_from_file_location(f"harness_own_{path.stem}", path)
    if not path.is_file() or module_spec is None or module_spec.loader is None:
        raise UserError(where, f"no file {path}", expected, "create it, or correct the path")
    module = module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        at = f"{path}:{line}" if line else str(path)
        raise UserError(at, f"{type(error).__name__}: {error}", expected, "fix the file") from error
    return module


def unknown(kind: str, name: str, where: str = "") -> Problem:
    """Build the problem of a name that no plugin has."""
    found, expected = f"unknown {_ONE[kind]} {name!r}", f"the name of one in harness/{kind}/"
    return Problem(where or kind, found, expected, did_you_mean(name, names(kind)))
