"""Rubrics, files next to a task: the criteria by which answers are graded, and the judges.

Invariant: a rubric that was read names usable judges, and grades that each of them can give; all problems
are listed at once, with file and line. No model is loaded here.
"""

from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, TypeGuard

from pydantic import Field

from harness import plugins
from harness.config.files import describe_missing_file, read_file, resolve_model
from harness.config.yaml_loading import Keys, Tree, problems_of, read_valid
from harness.errors import Problem, UserError, refuse
from harness.records import LabelSet, digest
from harness.spec import JUDGE, Spec, Task, TokenPrices, metric_name, metric_parts, rule

Written = str | dict[str, Any]
_CANDIDATE, _EXPERIMENT = "candidate", "experiment"
YES_NO = "yes/no"
_MOST_GRADES = 100  # steps of a scale


class JudgingCandidate(Spec):
    """Candidate used as a judge; prompted by the rubric, not by its own prompting.

    `candidate` is its name in the experiment that reads the rubric, or in `experiment`, the path of another
    harness.yaml. The weights of its first seed grade; with `weights`, only weights whose digest starts with
    it.
    """

    candidate: str = Field(min_length=1)
    experiment: str = ""
    weights: str = ""

    @property
    def label(self) -> str:
        """The candidate's name, with its experiment if that is another one."""
        return f"{self.candidate} of {self.experiment}" if self.experiment else self.candidate


def is_endpoint(written: Written) -> TypeGuard[dict[str, Any]]:
    """Tell whether a judge is asked over HTTP."""
    return isinstance(written, dict) and _CANDIDATE not in written


def endpoint_params(written: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of an endpoint that judges; judges are asked by chat."""
    return {"protocol": "chat", **written}


def judge_label(written: Written) -> str:
    """Return the name of a judge that runs here."""
    return written if isinstance(written, str) else JudgingCandidate(**written).label


def resolve_judge(written: Any, folder: Path) -> Any:
    """Make the folder of a model, or the experiment file of a candidate, absolute."""
    holder = {"judge": written}
    resolve_model(holder, "judge", folder)
    if isinstance(written, dict) and isinstance(file := written.get(_EXPERIMENT), str):
        return {**written, _EXPERIMENT: str((folder / Path(file).expanduser()).resolve())}
    return holder["judge"]


def endpoint_settings() -> type[Any]:
    """Return the model of an endpoint's settings: the parameters of the method that asks a URL."""
    remote = (plugins.method(name).params for name in plugins.methods(is_remote=True))
    return next(params for params in remote if "base_url" in params.model_fields)


class Scale(Spec):
    """Scale of whole numbers, from `min`, the worst grade, to `max`, the best."""

    min: int = Field(ge=0)
    max: int = Field(ge=1)

    @rule
    def _check_scale(self) -> Iterator[str]:
        if not 0 < self.max - self.min <= _MOST_GRADES:
            found = f"a scale from {self.min} to {self.max}"
            yield f"{found}; max lies 1 to {_MOST_GRADES} above min, and is the best grade"


class GradedExample(Spec):
    """Answer with the grade that it deserves, shown to the judge before what it grades.

    `answer` is what was answered to `question` behind `passages`, `reference` the right answer where the
    rubric shows these, and `grade` a grade of the scale.
    """

    question: str = ""
    passages: str = ""
    answer: str
    reference: str = ""
    grade: int | Literal["yes", "no"]


class Rubric(Spec):
    """Content of a rubric's file, which a task names among its metrics as `judge:./FILE.yaml`.

    `criteria` say in words what a good answer is. `mode` is how it is judged: with a `grade` of its own, or
    `pairwise` against the item's reference, in both orders, for which the score is the share of wins with a
    tie as half of one. `scale` is a range of whole numbers, or `yes/no`. `examples` are graded answers that
    the judge sees first. With `reference: true` it sees the item's right answer too, with `passages: true`
    what was retrieved for the candidate that answers, so that criteria can ask if the answer rests on it.

    `judge` is who grades: a model that runs here, as `base_model` names one, an endpoint by the parameters of
    the method `endpoint`, or the weights of a candidate: `{candidate: NAME}`, with `experiment: FILE` one of
    another harness.yaml, with `weights: DIGEST` only those whose digest begins so. `panel` lists several of
    them in its place; their mean counts. `version` names the judge's own version, where it changed behind its
    address: another one means other grades. `anchors` is how many answers an endpoint is asked about again
    before it grades others, `attempts` how often it is asked about one answer until its grade can be read.
    With `logprobs: true` it is asked for the likeliest first tokens too, and the mean of the grades counts by
    their probabilities. `max_cost` in USD ends the grading once all endpoints have cost as much, by
    `usd_per_million_tokens` of each, or where a judge has none of its own by that of the rubric.
    """

    criteria: str = Field(min_length=1)
    mode: Literal["grade", "pairwise"] = "grade"
    scale: Scale | Literal["yes/no"] = Scale(min=1, max=5)
    examples: tuple[GradedExample, ...] = ()
    reference: bool = False
    passages: bool = False
    judge: Written | None = None
    panel: tuple[Written, ...] = ()
    version: str = ""
    anchors: int = Field(20, ge=0)
    attempts: int = Field(1, ge=1, le=10)
    logprobs: bool = False
    max_cost: float | None = Field(None, gt=0)
    usd_per_million_tokens: TokenPrices | None = None

    @rule
    def _check_keys(self) -> Iterator[str]:
        if (self.judge is None) == (not self.panel):
            yield "judge and panel; write one of the two: judge: NAME, or panel: [NAME, NAME]"
        if len(self.panel) == 1:
            yield "a panel of one judge; list two judges or more, or write judge: in its place"
        are_priced = ["usd_per_million_tokens" in judge for judge in self.judges if is_endpoint(judge)]
        is_priced = self.usd_per_million_tokens or (are_priced and all(are_priced))
        if self.judges and self.max_cost is not None and not is_priced:
            yield "max_cost without usd_per_million_tokens, by which the cost is counted"
        grade_keys = {"scale", "examples", "reference", "passages"} & self.model_fields_set
        if self.mode == "pairwise" and grade_keys:
            expected_names = "the better answer is A, B or tie, and one of the two is the reference"
            yield f"mode: pairwise with {', '.join(sorted(grade_keys))}; {expected_names}"
        grades = self.grades
        for example in self.examples:
            if str(example.grade) not in grades:
                yield f"an example with grade {example.grade}, which is none of {', '.join(grades)}"

    @property
    def grades(self) -> tuple[str, ...]:
        """The grades that a judge may give, the worst first; in a pair they grade the answer called A."""
        if self.mode == "pairwise":
            return ("B", "tie", "A")
        if isinstance(self.scale, Scale):
            return tuple(map(str, range(self.scale.min, self.scale.max + 1)))
        return ("no", "yes")

    @property
    def judges(self) -> tuple[Written, ...]:
        """The judges as written: the single one, or the panel."""
        return self.panel if self.judge is None else (self.judge,)

    @property
    def content(self) -> dict[str, Any]:
        """Fields that grades depend on: the rubric without judges, numbers of requests and prices."""
        apart = {"judge", "panel", "anchors", "attempts", "max_cost", "usd_per_million_tokens"}
        return self.model_dump(mode="json", exclude=apart, exclude_defaults=True)

    @property
    def needs_references(self) -> bool:
        """Whether a judge is shown the item's reference."""
        return self.reference or self.mode == "pairwise"

    def value(self, grade: str) -> float:
        """Return a grade as a share of the scale: 0 is the worst, 1 the best."""
        return self.grades.index(grade) / (len(self.grades) - 1)


def read_rubric(path: Path, folder: Path | None = None) -> Rubric:
    """Read a rubric; a model's folder is relative to the file, shown paths are relative to `folder`."""
    tree = read_file(path, folder or path.parent, "criteria: and judge:")
    if "judge" in tree.data:
        tree.data["judge"] = resolve_judge(tree.data["judge"], path.parent)
    if isinstance(panel := tree.data.get("panel"), list):
        tree.data["panel"] = [resolve_judge(judge, path.parent) for judge in panel]
    refuse([*problems_of(Rubric, tree.data, tree), *_unusable_judges(tree)])
    return Rubric.model_validate(tree.data)


def rubric_of(task: Task, metric: str) -> Rubric | None:
    """Read the rubric of a task's metric, given its short name; None if no judge grades it."""
    judged = (written for written in task.metrics if is_judged(written) and metric_name(written) == metric)
    written = next(judged, None)
    return None if written is None else read_rubric(Path(metric_parts(written)[1]))


def digest_question(task: Task, metric: str) -> str:
    """Digest the criteria and grades by which people label a judge's metric; empty for other metrics."""
    rubric = rubric_of(task, metric)
    return digest([rubric.criteria, *rubric.grades]) if rubric else ""


def current_labels(label_sets: Iterable[LabelSet], task: Task) -> list[LabelSet]:
    """List the label sets that were given by a rubric's present criteria and scale."""
    digest_by_metric = {name: digest_question(task, name) for name in map(metric_name, task.metrics)}
    return [label for label in label_sets if label.rubric == digest_by_metric.get(label.metric)]


def try_to_read(written: str, folder: Path, where: str) -> Rubric | list[Problem]:
    """Read the rubric of a judge, written at the position `where`, or return its problems."""
    path = Path(metric_parts(written)[1])
    if not path.is_file():
        return [describe_missing_file(path, where, "a rubric")]
    try:
        return read_rubric(path, folder)
    except UserError as error:
        return list(error.problems)


def _unusable_judges(tree: Tree) -> Iterator[Problem]:
    judges: list[tuple[Keys, Any]] = [(("judge",), tree.data.get("judge"))]
    if isinstance(panel := tree.data.get("panel"), list):
        judges += [(("panel", index), judge) for index, judge in enumerate(panel)]
    rubric = read_valid(Rubric, {**tree.data, "judge": "any", "panel": ()})
    many_digits = rubric and any(a[: len(b)] == b for a, b in permutations(rubric.grades, 2))
    for keys, judge in judges:
        if is_endpoint(judge):
            params = endpoint_params(judge)
            yield from problems_of(endpoint_settings(), params, tree, keys)
            if params["protocol"] != "chat":
                found = f"a judge with protocol: {params['protocol']}, which sends tokens of the base"
                yield Problem(tree.where((*keys, "protocol")), found, "protocol: chat", "remove protocol")
        elif isinstance(judge, dict) and (wrong := problems_of(JudgingCandidate, judge, tree, keys)):
            yield from wrong
        elif isinstance(judge, dict) and (file := judge.get(_EXPERIMENT)) and not Path(file).is_file():
            where = tree.where((*keys, _EXPERIMENT))
            yield describe_missing_file(Path(file), where, "the harness.yaml of an experiment")
        elif isinstance(judge, str | dict) and rubric and many_digits:
            found = f"{judge_label(judge)}, a model that runs here, and grades up to {rubric.grades[-1]}"
            step = "scale: {min: 1, max: 9} at most, or an endpoint"
            yield Problem(tree.where(keys), found, "grades of one digit, whose likelihoods compare", step)
    if rubric and rubric.logprobs and many_digits:
        found = f"logprobs: true and grades up to {rubric.grades[-1]}"
        step = "scale: {min: 1, max: 9} at most, or logprobs: false"
        yield Problem(tree.where(("logprobs",)), found, "grades that differ in their first token", step)
    id_keys = {"base_url", "model", _CANDIDATE, _EXPERIMENT}  # keys that tell one judge from another
    first_index: dict[str, int] = {}
    for index, (keys, judge) in enumerate(judges[1:]):
        identity = {k: v for k, v in judge.items() if k in id_keys} if isinstance(judge, dict) else judge
        if (first := first_index.setdefault(digest(identity), index)) != index:
            found = f"judge {index + 1} of the panel, which is judge {first + 1} again"
            step = "remove it, for its grades would count twice, or name another model"
            yield Problem(tree.where(keys), found, "each judge of a panel once", step)


def is_judged(written: str) -> bool:
    """Tell whether a judge grades a metric, given as written."""
    return written.startswith(JUDGE)
