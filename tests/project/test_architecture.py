"""Import rules: the order of modules, where third parties may be imported, and what stays light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import plugins
from harness.provenance import code_versions

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "harness"
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = (
    "masking errors formatting progress records cache spec provenance plugins config data prompting metrics models "
    "regularizers training methods store stats analysis evaluation report experiment exports lifecycle cli __main__"
).split()

MODEL = {"progress", "models", "regularizers", "training", "methods", "exports"}
HOMES = {
    **dict.fromkeys(
        ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "safetensors"), MODEL
    ),
    "gguf": {"models", "exports"},
    "openai": {"models"},
    "ray": {"experiment"},
    "submitit": {"experiment"},
    "lm_eval": {"evaluation"},
    "duckdb": {"store"},
    "streamlit": set(),
    "typer": {"cli"},
    "ruamel": {"config"},
    "sacrebleu": {"metrics"},
    "rouge_score": {"metrics"},
    "bm25s": {"prompting"},
    "sentence_transformers": {"data", "prompting", "metrics", "training", "methods"},
    "evaluate": {"metrics"},
    "py3langid": {"evaluation"},
    "optuna": {"experiment"},
    **{name: {"report", "training"} for name in ("mlflow", "tensorboard", "wandb")},
    **{name: {"data"} for name in ("datasketch", "ftfy", "cleanlab", "phonenumbers", "stdnum")},
}
# Slow to import: never imported at the top of a file.
HEAVY = (
    "torch transformers peft trl bitsandbytes accelerate datasets pandas pyarrow sklearn scipy.stats "
    "scipy.optimize statsmodels sacrebleu rouge_score bm25s gguf lm_eval duckdb sentence_transformers evaluate openai ray submitit "
    "mlflow tensorboard wandb optuna datasketch ftfy cleanlab phonenumbers py3langid stdnum"
).split()
# Derives from a class of lm-eval, so it imports that at the top; no module of ours imports this file.
DERIVED = PACKAGE / "evaluation" / "lm_eval" / "harness_model.py"
# Submodules that other packages import, by package; everything else is imported from the package itself. A
# submodule is listed where the package would load too much or itself, or where a bare name is unclear.
OFFERED = {
    # A group without a facade: each name is imported from the module that defines it.
    "analysis": (
        "ablation admission alignment answers arithmetic candidate_facts comparison control_arm_drift decision economics estimators explain "
        "gate_verdict human_preferences judge_correction people_labels macro margins next_step gate_rules_on_answers run_diff seeds "
        "significance target_scores verdict"
    ),
    # Its `is_endpoint` is about a judge's settings; that of `models.openai_api` is about a run.
    "config": "recipe_checks rubrics",
    # A group: reading a task's items needs no code that checks, changes and compares rows. `edit.dedup`
    # imports `contamination`, which imports `edit.row_files`.
    "data": "check check.personal_data column_roles contamination edit.changes edit.clean edit.dedup edit.mix edit.row_files edit.save edit.split examples formats guessed_columns near_duplicates readers row_forms row_traits splits text_files turns unused",
    # A group: `session` and what uses it import the package, so it cannot import them.
    "evaluation": (
        "candidate_rows candidates control_arm costs judge_calls judges languages lm_eval.bridge lm_eval.tasks "
        "row_sets runner sampling session stored_scores timing"
    ),
    # Jobs other than a comparison, each loaded by its command; `plan` and `begin` are unclear as bare names.
    # `study` and `run_verdicts` judge stored runs, without a comparison.
    "experiment": (
        "augmentation bases check_rows checkup cost_estimates rescue rescue_trials run_candidate scaffold "
        "standalone step_worker run_verdicts study verdict_records writers written_rows"
    ),
    # A group: engines, weights and devices; each package needs a few of them.
    "models": "against_base artefacts batching chat_templates deltas devices hardware hf hub later loglikelihood memory openai_api out_of_memory pass_costs prefix_cache programs shapes vllm weight_files",
    # One module for each thing that happens to a run. A command loads `label_file` or `pair_file`; `write` of
    # `scheduler` writes files for cron and systemd.
    "lifecycle": "corrections feedback label_file nightly nightly_alarm pair_file production promotion release removal scheduler",
    # `clean` cleans a text; few callers need findings or trackers.
    "report": "escape findings trackers",
    # The functions of `frames` form `harness.frames`, which is loaded on first access.
    "store": "frames",
    # A group: the training loop, its parts and the model families; each method needs a few. `job_worker` runs
    # as a program, so the package must not have loaded it.
    "training": "context heads heldout job_worker live_trackers lora parallel peft_families policies reinforcement sft tokenized trainer",
}
# Modules that re-export what they import, as packages do.
FACADES = "experiment/preparation lifecycle/release"
# Must work on a machine without torch.
LIGHT = (
    "config store stats analysis.comparison analysis.gate_verdict analysis.decision report lifecycle.release "
    "lifecycle.production experiment.rescue cli"
).split()


class Import(NamedTuple):
    module: str
    line: int
    at_top: bool


def runs_later(node: ast.AST) -> bool:
    """Whether the body does not run at import: a function, or a block for type checkers."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


BLOCKS = (ast.stmt, ast.excepthandler, ast.match_case)  # nodes that hold statements


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


@cache
def imports(file: Path) -> tuple[Import, ...]:
    """Return every import of a file; `from a import b` counts as a.b."""
    found_imports, waiting = [], [(tree(file), True)]
    while waiting:
        node, at_top = waiting.pop()
        if isinstance(node, ast.Import):
            found_imports += [Import(alias.name, node.lineno, at_top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = f"{'.' * node.level}{node.module or ''}"
            found_imports += [Import(f"{source}.{alias.name}", node.lineno, at_top) for alias in node.names]
        else:
            at_top = at_top and not runs_later(node)
            blocks = (child for child in ast.iter_child_nodes(node) if isinstance(child, BLOCKS))
            waiting += [(block, at_top) for block in blocks]
    return tuple(found_imports)


def module(file: Path) -> str:
    """Return the module in ORDER that a file belongs to; a package counts as one module."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def starts(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def find_own_module(imported: str) -> str:
    """Return our module that an import refers to, or "" for third parties and dunders."""
    parts = imported.split(".")
    return parts[1] if parts[0] == "harness" and len(parts) > 1 and not parts[1].startswith("__") else ""


def violations(file: Path, wrong) -> list[str]:
    return [f"{file.relative_to(ROOT)}:{i.line} imports {i.module}" for i in imports(file) if wrong(i)]


MODULES = [file for file in FILES if module(file) != "__init__"]


def test_every_module_has_its_place_in_the_order_and_the_package_shows_at_most_31_names():
    assert {module(file) for file in MODULES} <= set(ORDER)
    top = {p.stem for p in PACKAGE.iterdir() if p.is_dir() or p.suffix == ".py"}
    top = {name for name in top if not name.startswith("__")}
    assert len(top) <= 31


@pytest.mark.e2e
def test_a_module_imports_only_from_its_left():
    all_violations = []
    for file in MODULES:
        right = set(ORDER[ORDER.index(module(file)) + 1 :])
        all_violations += violations(file, lambda i, right=right: find_own_module(i.module) in right)
    assert all_violations == []


def find_reached(imported: str) -> str:
    """Return the module below harness/ that an import refers to: `data.edit` for harness.data.edit.drop."""
    parts = imported.split(".")[1:]
    if len(parts) > 1 and is_function_of_its_module(parts):
        return ".".join(parts[:-1])
    while parts and not (PACKAGE.joinpath(*parts).is_dir() or (PACKAGE / f"{'/'.join(parts)}.py").is_file()):
        parts.pop()
    return ".".join(parts)


def is_function_of_its_module(parts: list[str]) -> bool:
    """Whether a package offers a name that is also one of its modules, as `stats.bootstrap`."""
    init = PACKAGE.joinpath(*parts[:-1], "__init__.py")
    offered = ".".join(("harness", *parts, parts[-1]))
    return init.is_file() and any(i.module == offered for i in imports(init))


def reach_into_others(file: Path) -> list[str]:
    """List the submodules of other packages that a file imports."""
    reached = [
        find_reached(i.module) for i in imports(file) if find_own_module(i.module) not in ("", module(file))
    ]
    return [name for name in reached if "." in name]


OFFERED_SUBMODULES = {f"{package}.{name}" for package, names in OFFERED.items() for name in names.split()}


@pytest.mark.e2e
def test_what_is_offered_is_all_that_is_imported_and_is_not_private():
    uses = {f"{file.relative_to(ROOT)}: {name}" for file in FILES for name in reach_into_others(file)}
    assert sorted(use for use in uses if use.partition(": ")[2] not in OFFERED_SUBMODULES) == []

    reached = {name for file in FILES for name in reach_into_others(file)}
    assert sorted(OFFERED_SUBMODULES - reached) == []
    assert [name for name in sorted(OFFERED_SUBMODULES) if "._" in name] == []


def test_the_version_of_the_layout_stands_for_all_code_that_lays_tokens_out():
    """`tokenization` makes token ids and `hub` finds weights: their effects have digests of their own.

    The placement of layers on devices does not change the layout.
    """
    exempt = {*"tokenization hub hardware against_base later weight_files pass_costs shapes memory".split()}
    listed = code_versions()["layout"].files
    sources = {
        i.module.split(".")[-1]: i.module.split(".")[2] for i in imports(PACKAGE / "models/__init__.py")
    }
    imported = {
        i.module.split(".")[2]
        for name in listed
        for i in imports(PACKAGE / name)
        if find_own_module(i.module) == "models"
    }
    near = {sources.get(name, name) for name in imported}
    assert near - exempt <= {Path(name).stem for name in listed}
    assert "batching" in near


@pytest.mark.e2e
def test_a_package_imports_what_it_uses_or_what_others_take_from_it():
    """A package without `__all__` offers its imports: by `from`, or as an attribute of some name."""
    files = [f for d in ("harness", "dashboards", "tests") for f in ROOT.glob(f"{d}/**/*.py")]
    attrs = {node.attr for f in files for node in ast.walk(tree(f)) if isinstance(node, ast.Attribute)}
    attrs |= set(re.findall(r"\btraining\.(\w+)", (ROOT / "docs/howto/extend.md").read_text()))  # by plugins
    modules = {i.module for f in files for i in imports(f)}
    idle = []
    offering = [PACKAGE / f"{name}.py" for name in FACADES.split()]
    offering += (f for f in FILES if f.name == "__init__.py" and "__all__" not in f.read_text())
    for file in offering:
        package = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        used = {n.id for n in ast.walk(tree(file)) if isinstance(n, ast.Name)}
        ours = [i.module for i in imports(file) if i.at_top and find_own_module(i.module)]
        names = {name.rpartition(".")[2] for name in ours if not name.startswith("harness.models.later.")}
        idle += [
            f"{package}.{name}" for name in sorted(names - attrs - used) if f"{package}.{name}" not in modules
        ]
    assert idle == []


def test_no_import_is_relative_and_slow_packages_are_imported_inside_functions():
    assert [v for file in FILES for v in violations(file, lambda i: i.module.startswith("."))] == []

    def is_slow(i: Import) -> bool:
        return i.at_top and any(starts(i.module, name) for name in HEAVY)

    assert [v for file in FILES if file != DERIVED for v in violations(file, is_slow)] == []

    def it(i: Import) -> bool:
        return starts(i.module, "harness.evaluation.lm_eval.harness_model")

    assert [v for file in FILES for v in violations(file, it)] == []


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_plugins_never_import_each_other(kind):
    files = {place.file for place in plugins.places(kind).values()}
    siblings = tuple(f"harness.{kind}.{file.stem}" for file in files)
    found_violations = [
        violation
        for file in files
        for violation in violations(file, lambda i: any(starts(i.module, sibling) for sibling in siblings))
    ]
    assert found_violations == []


@pytest.mark.parametrize("third_party", HOMES)
def test_a_third_party_is_imported_only_at_home(third_party):
    strangers = [file for file in FILES if module(file) not in HOMES[third_party]]
    assert [v for f in strangers for v in violations(f, lambda i: starts(i.module, third_party))] == []


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


BLOCK = "import sys\nfor name in ('torch', 'transformers', 'trl', 'peft'): sys.modules[name] = None\n"


@pytest.mark.e2e
def test_every_plugin_and_what_reads_stored_runs_import_with_torch_blocked():
    stems = {f"{kind}.{place.file.stem}" for kind in plugins.KINDS for place in plugins.places(kind).values()}
    process = run_python(BLOCK + "".join(f"import harness.{name}\n" for name in (*LIGHT, *stems)))
    assert stems
    assert process.returncode == 0, process.stderr


def test_help_imports_no_slow_package_and_reads_no_configuration_whatever_variables_are_set(monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", "anywhere")
    program = (
        "import sys\n"
        "from harness.cli import main\n"
        "sys.argv = ['harness', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('slow:', sorted({{*{HEAVY}, 'harness.config'}} & set(sys.modules)))\n"
    )
    process = run_python(program)
    assert process.stdout.endswith("slow: []\n"), process.stdout + process.stderr


PLUGINS = ("methods", "metrics", "prompting", "regularizers", "exports")
CIRCUMSCRIBES = re.compile(r"(What|Why|Which|Who|Whose|Whoever|Where|How|Nobody)\b")


def test_a_file_holds_a_concept_and_at_most_five_hundred_lines():
    lines = {str(f.relative_to(ROOT)): len(f.read_text("utf-8").splitlines()) for f in FILES}
    assert {file: n for file, n in lines.items() if n > 500} == {}
    lines = sorted(len(f.read_text("utf-8").splitlines()) for f in FILES if module(f) not in PLUGINS)
    assert lines[len(lines) // 2] >= 120


def _problems(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls in a file that construct a problem."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
            yield node


def _names_next_step(call: ast.Call) -> bool:
    """Whether a problem is given a non-empty fourth argument.

    The type of an unpacked tuple fixes its length.
    """
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return True
    keyword_steps = [keyword.value for keyword in call.keywords if keyword.arg == "next_step"]
    steps = [*call.args[3:4], *keyword_steps]
    return bool(steps) and not (isinstance(steps[0], ast.Constant) and not steps[0].value)


@pytest.mark.e2e
def test_every_problem_names_a_next_step():
    without = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file in FILES
        for call in _problems(tree(file))
        if not _names_next_step(call)
    ]
    assert without == []


@pytest.mark.e2e
def test_a_first_line_names_the_thing():
    misnamed = []
    for file in FILES:
        documented = [tree(file), *(n for n in ast.walk(tree(file)) if isinstance(n, ast.ClassDef))]
        lines = [(ast.get_docstring(node) or "").partition("\n")[0] for node in documented]
        misnamed += [f"{file.relative_to(ROOT)}: {line}" for line in lines if CIRCUMSCRIBES.match(line)]
    assert misnamed == []
