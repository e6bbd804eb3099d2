"""The reference pages of the site, generated from the code, and the repository's files that pages link to.

Invariant: nothing is written into docs/. mkdocs calls `on_files`, which adds the pages, and
`on_page_markdown`, which turns a link to a file of the repository into one to its copy in the site.
"""

import inspect
import math
import re
from collections.abc import Iterable, Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo
from typer.main import get_command

from harness import cli, plugins, spec
from harness.cli.app import EXIT_CODES
from harness.cli.catalog import default_of, map_meanings, map_purposes, models_in
from harness.cli.options import example_commands
from harness.config.rubrics import Rubric
from harness.metrics import load_metrics
from harness.store import TABLES

ROOT = Path(__file__).parents[1]
COPIES = ("reports/*.md", "reports/*.svg", "reports/benchmarks/*.md", "reports/benchmarks/*.svg",
          "reports/examples/*", "dashboards/screenshots/*.png",
          "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "harness/config/recipe_ranges.toml",
          "tests/ten_languages.txt", ".github/workflows/nightly.yml")  # fmt: skip
OVERVIEW = "overview.md"
AT_TOP = (OVERVIEW, "CONTRIBUTING.md", "CHANGELOG.md")  # copies of files next to docs/
# Public Python names by use: heading, module, names.
PYTHON = (
    ("Run and judge", "harness", ("compare", "gate")),
    ("Data frames", "harness.frames", ("runs", "scores", "samples", "deltas", "verdicts", "query")),
    ("The report", "harness.report", ("ExperimentReport", "read", "write", "to_json")),
    ("Parts of a report", "harness.analysis.decision", ("Decision",)),
    ("Parts of a report", "harness.analysis.estimators", ("Comparison",)),
    ("Parts of a report", "harness.analysis.verdict", ("Verdict",)),
    ("For a metric", "harness.metrics", ("Metric", "mean_metric", "normalize")),
    ("For a metric", "harness.records", ("Example", "Output", "SampleResult")),
    ("For a prompting", "harness.prompting", ("PromptingContext", "with_context", "question")),
    ("For a method", "harness.training", ("FitContext", "Weights", "SupervisedParams", "fine_tune")),
    (
        "For a method",
        "harness.training",
        ("load_policy", "pairs_that_fit", "make_policy_trainer", "train_policy", "add_curves"),
    ),
    ("For a method", "harness.plugins", ("Method",)),
    (
        "For a regularizer",
        "harness.regularizers",
        ("Start", "GeneralRow", "general_mixture", "MixContext", "Mixture"),
    ),
    ("For a step of a rescue", "harness.plugins", ("RescueSituation", "RescueStep", "TrialSetting")),
)
NAMES = {
    NoneType: "nothing",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Any: "any value",
}
VALUES = {"str": "TEXT", "int": "N", "list": "A,B"}  # placeholders of option values, by type
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the copies."""
    for name, page in REFERENCE.items():
        files.append(File.generated(config, f"reference/{name}.md", content="\n\n".join(page())))
    for path in sorted(path for pattern in COPIES for path in ROOT.glob(pattern)):
        source = str(path.relative_to(ROOT))
        name = OVERVIEW if source == "README.md" else source
        files.append(
            File.generated(config, name, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Drop from links the `../` that leaves docs/, and `docs/`; name the pages of README and `baselines/`."""
    markdown = markdown.replace("baselines/)", "reference/recipes.md)")
    if page.file.src_uri in AT_TOP:
        return markdown.replace("](docs/", "](").replace("](README.md", f"]({OVERVIEW}")
    markdown = markdown.replace("](../docs/", "](../")  # from reports/
    ups = "../" * (page.file.src_uri.count("/") + 1)
    inside = ups.removeprefix("../")
    return markdown.replace(f"]({ups}", f"]({inside}").replace(
        f"]({inside}README.md", f"]({inside}{OVERVIEW}"
    )


def keys() -> Iterator[str]:
    """Yield the page of all keys of `harness.yaml`."""
    yield "# Keys of harness.yaml"
    yield (
        "Every key with its values, default and meaning. Unknown keys are errors. "
        "On the command line `a.b=value` overrides a key. `harness ls keys` prints the same."
    )
    yield from _section_tables(_sections(spec.Experiment, "harness.yaml", {}))


def rubric() -> Iterator[str]:
    """Yield the page of all keys of a rubric file."""
    yield "# Keys of a rubric"
    yield "A metric `judge:./FILE.yaml` names the file. Unknown keys are errors; paths are relative to it."
    yield from _section_tables(_sections(Rubric, "rubric.yaml", {}))


def _section_tables(sections: dict[str, type[spec.Spec]]) -> Iterator[str]:
    for key, model in sections.items():
        yield f"## `{key}` {{ #{_anchor(model)} }}"
        prose, meanings = map_meanings(model)
        yield prose
        rows = ((*_key_row(item), meanings.get(item[0], "")) for item in model.model_fields.items())
        yield _table(("key", "takes", "default", "meaning"), rows)


def _sections(
    model: type[spec.Spec], key: str, sections: dict[str, type[spec.Spec]]
) -> dict[str, type[spec.Spec]]:
    """Map the first key of each section to the section's model, in the order of the file."""
    if model not in sections.values():
        sections[key] = model
        for name, field in model.model_fields.items():
            for inner in models_in(field.annotation):
                _sections(inner, name if key == "harness.yaml" else f"{key}.{name}", sections)
    return sections


def _key_row(item: tuple[str, FieldInfo]) -> tuple[str, ...]:
    name, field = item
    takes = f"{_takes(field.annotation)}{_limits(field.metadata)}"
    return f"`{name}`", f"{field.description}: {takes}" if field.description else takes, _default(field)


def _takes(annotation: Any) -> str:
    """Describe the values of a key in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, spec.Spec):
        return f"[section](#{_anchor(annotation)})"
    if origin is Literal:
        return ", ".join(f"`{_yaml(part)}`" for part in parts)
    if hasattr(annotation, "__metadata__"):
        constraints = [item for part in annotation.__metadata__ for item in getattr(part, "metadata", ())]
        return f"{_takes(parts[0])}{_limits(constraints)}"
    if origin in (tuple, list):
        return f"list: {_takes(parts[0])}"
    if origin is dict:
        return f"mapping: {_takes(parts[1])}"
    return NAMES.get(annotation) or " or ".join(_takes(part) for part in parts if part is not NoneType)


def _limits(metadata: Iterable[Any]) -> str:
    limits = [
        f"{sign} {_yaml(getattr(constraint, name))}"
        for constraint in metadata
        for name, sign in LIMITS.items()
        if hasattr(constraint, name)
    ]
    return f" ({', '.join(limits)})" if limits else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = default_of(field)
    if isinstance(value, spec.Spec):
        return "its defaults"
    return "" if value is None or value in ("", (), {}) else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(item)}' for key, item in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def verbs() -> Iterator[str]:
    """Yield the page of verbs with their options, and of exit codes."""
    yield "# Verbs and exit codes"
    yield (
        "Results go to stdout, progress to stderr. An argument `a.b=value` overrides a key of the "
        "file. Every verb takes `--help`; `harness --version` prints the release."
    )
    for name, command in _commands(get_command(cli.app), "harness"):
        yield f"## `{name}`"
        yield command.help
        yield "\n".join(("```sh", *example_commands(command), "```"))
        rows = (_option_row(param) for param in command.params if param.name != "help")
        yield _table(("argument or option", "meaning", "default", "environment"), rows)
    yield "## Exit codes { #exit-codes }"
    yield _table(("exit code", "meaning"), ((str(code), text) for code, text in EXIT_CODES.items()))


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    subcommands = getattr(command, "commands", {})
    if not subcommands:
        yield name, command
    for child, subcommand in subcommands.items():
        yield from _commands(subcommand, f"{name} {child}")


def _option_row(param: Any) -> tuple[str, ...]:
    option = param.param_type_name == "option"
    names = [*param.opts, *param.secondary_opts] if option else [param.metavar or (param.name or "").upper()]
    kind = getattr(param.type_descriptor.annotation, "__name__", "")
    takes = "" if not option or param.is_flag else f" {param.metavar or VALUES.get(kind, kind.upper())}"
    default = "" if param.default in (None, "", False) or callable(param.default) else f"`{param.default}`"
    envvar = f"`{param.envvar}`" if param.envvar else ""
    return (
        ", ".join(f"`{name}{takes}`" for name in names),
        param.help or "",
        "required" if param.required else default,
        envvar,
    )


def plugin_parameters() -> Iterator[str]:
    """Yield the page of methods, promptings, regularisers, metrics and suites, with their parameters."""
    yield "# Methods, promptings, regularizers, metrics and suites"
    yield "Plugins that `harness.yaml` refers to by name. `harness ls methods` lists those of this machine."
    for kind in ("methods", "prompting", "regularizers"):
        yield f"## {kind.capitalize()}"
        for name, purpose in map_purposes(kind).items():
            yield f"### `{name}` {{ #{kind}-{name} }}"
            yield purpose
            if kind == "regularizers":
                yield f"Supported by {', '.join(_supporting_methods(name))}."
            params = plugins.load(kind, name, "docs").Params
            for key, model in _sections(params, "", {}).items() if params.model_fields else ():
                yield (
                    f"`{key[1:]}`: {_docstring(model)}\n{{: #{_anchor(model)} }}"
                    if key
                    else _docstring(model)
                )
                yield _table(("parameter", "takes", "default"), map(_key_row, model.model_fields.items()))
    yield "## Metrics"
    yield "A metric with parameters is written as `{rouge: {kind: rougeLsum}}`."
    yield _table(
        ("metric", "better", "range", "parameters", "meaning"),
        map(_metric_row, map_purposes("metrics").items()),
    )
    yield "## Suites"
    yield _table(
        ("suite", "role: tasks"),
        ((f"`{n}`", tasks) for n, tasks in map_purposes("suites", ROOT / "suites").items()),
    )
    yield "## Tasks of these suites"
    yield _table(
        ("task", "meaning"),
        ((f"`{name}`", text) for name, text in map_purposes("tasks", ROOT / "suites").items()),
    )


def _supporting_methods(regularizer: str) -> Iterator[str]:
    """Yield the methods that support a regularizer, with the parameter value that this needs."""
    for name in plugins.methods(trains=True):
        method = plugins.method(name)
        if plugins.takes(method, regularizer):
            yield f"`{name}`"
            continue
        for parameter, value in method.hooks_where:
            if plugins.takes(method, regularizer, {parameter: value}):
                yield f"`{name}` with `{parameter}: {value}`"


def _metric_row(item: tuple[str, str]) -> tuple[str, ...]:
    """Return a metric's direction, range, parameters and purpose."""
    name, purpose = item
    task = spec.Task(name="docs", data=spec.TaskData(), metrics=(name,), labels=("1", "2"))
    metric = load_metrics(task)[name]
    low, high = ("∞" if math.isinf(bound) else f"{bound:g}" for bound in metric.bounds)
    model = getattr(plugins.load("metrics", name), "Params", spec.Spec)
    params = (f"`{key}`: {_takes(field.annotation)}" for key, field in model.model_fields.items())
    return (
        f"`{name}`",
        "higher" if metric.higher_is_better else "lower",
        f"{low} to {high}",
        "; ".join(params),
        purpose,
    )


def recipes() -> Iterator[str]:
    """Yield the page of recipes: each file of `baselines/`, with the sources of its values."""
    yield "# Recipes"
    yield (
        "`candidates: {knn: few-shot}` uses a recipe by its name. Each comment names the source of "
        "the values. The ranges that `harness compare` warns by are in `harness/config/recipe_ranges.toml`."
    )
    for file in sorted((ROOT / "baselines").glob("*.yaml")):
        yield f"## `{file.stem}` {{ #{file.stem} }}"
        yield f"```yaml\n{file.read_text('utf-8').strip()}\n```"


def tables() -> Iterator[str]:
    """Yield the page of the tables that can be queried."""
    yield "# Tables of SQL"
    yield "Tables for `harness sql` and `harness.frames`; `harness sql --tables` prints the same."
    for table in TABLES:
        yield f"## `{table.name}` {{ #{table.name} }}"
        yield f"One row is {table.row}."
        rows = ((f"`{c.name}`", c.type, c.unit, c.meaning) for c in table.columns)
        yield _table(("column", "type", "unit", "meaning"), rows)


def python() -> Iterator[str]:
    """Yield the page of the Python API."""
    yield "# Python API"
    yield "Names for notebooks and plugins. Other names may change while the version is 0.1."
    previous = ""
    for heading, module, names in PYTHON:
        if heading != previous:
            yield f"## {heading}"
        previous = heading
        for name in names:
            yield from _object(f"{module}.{name}", _find(f"{module}.{name}"))


def _find(name: str) -> Any:
    module, *names = name.split(".")
    return reduce(_attribute, names, import_module(module))


def _attribute(owner: Any, name: str) -> Any:
    return getattr(owner, name, None) or import_module(f"{owner.__name__}.{name}")


def _object(name: str, documented: Any) -> Iterator[str]:
    yield f"### `{name}`"
    if inspect.isclass(documented) and (fields := _fields(documented)):
        yield _docstring(documented)
        yield _table(
            ("field", "type"), ((f"`{field}`", f"`{_short(kind)}`") for field, kind in fields.items())
        )
    else:
        yield f"```python\n{_signature(name.rpartition('.')[2], documented)}\n```"
        yield _docstring(documented)


def _fields(kind: type) -> dict[str, str]:
    """Return the names and types of a class's fields, inherited ones first."""
    annotations = {
        name: of_base
        for base in reversed(kind.__mro__)
        for name, of_base in inspect.get_annotations(base).items()
    }
    return {
        name: inspect.formatannotation(annotation)
        for name, annotation in annotations.items()
        if not name.startswith(("_", "model_"))
    }


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parameters = list(map(str, signature.parameters.values()))
    star = next((i for i, p in enumerate(signature.parameters.values()) if p.kind is p.KEYWORD_ONLY), None)
    if star is not None:
        parameters.insert(star, "*")
    result = str(signature.replace(parameters=[])).removeprefix("()")
    lines = "".join(f"    {parameter},\n" for parameter in parameters)
    return _short(f"{name}(\n{lines}){result}".replace("'", '"'))


def _short(annotation: str) -> str:
    """Strip module names from types."""
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z]\w*)", "", annotation)


def _docstring(documented: Any) -> str:
    """Return a docstring as Markdown, with returns and raises as lists."""
    text = inspect.getdoc(documented) or ""
    text = re.sub(r"^(Raises|Returns|Args):\n", r"\n**\1**\n\n", text, flags=re.MULTILINE)
    return re.sub(
        r"^    (?=\S)(?:(\w+): )?",
        lambda match: f"- {f'`{match[1]}`: ' if match[1] else ''}",
        text,
        flags=re.MULTILINE,
    )


def _anchor(model: type) -> str:
    return model.__name__.lower()


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if len(lines) > 2 else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


REFERENCE = {
    "keys": keys,
    "rubric": rubric,
    "verbs": verbs,
    "plugins": plugin_parameters,
    "recipes": recipes,
    "tables": tables,
    "python": python,
}
