"""README and docs/ agree with the repository: tree, commands, keys, links, examples and the result table.

README's tree is the block fenced with ```text that starts with `harness/`: one name a line, two spaces a
level, folders end with a slash, a comment follows after two or more spaces. A folder whose
children are shown shows all of them. Commands are the lines of ```sh blocks, and `harness …` or
`make …` in backticks. An example that is a file begins with a comment that names it.
"""

import ast
import html
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods
from rich.console import Console
from ruamel.yaml import YAML
from test_architecture import ORDER
from typer.main import get_command

from harness import cli, config, data, errors, plugins, report, spec
from harness.cli.catalog import map_purposes
from harness.cli.options import example_commands
from harness.models import hub
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.progress import SilentProgress
from harness.prompting import PromptingContext
from harness.records import Example, Output
from harness.regularizers import Start
from harness.report import ExperimentReport
from harness.report.columns import CANDIDATE_COLUMNS, result_headings
from harness.report.wording import last_line
from harness.training import FitContext
from reports.studies import data_check_page, mended_rows
from reports.studies.data_check import READ

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {str(file.relative_to(ROOT)): file.read_text() for file in FILES}
DOCS = "\n".join(PAGES.values())
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NOT_SHOWN = {"__init__.py", "__pycache__", "__main__.py", "py.typed", "dist", "build", "shared", "site"}
OPTIONS_OF_ALL = {"--help", "--version"}


def blocks(language: str, text: str = DOCS) -> list[list[str]]:
    return [textwrap.dedent(block).splitlines() for _, tag, block in FENCE.findall(text) if tag == language]


def load_file(path: Path):
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


GENERATOR = load_file(ROOT / "docs" / "generate.py")


@cache
def reference(page: str) -> str:
    return "\n\n".join(getattr(GENERATOR, page)())


def tree() -> list[Path]:
    """Return the paths of README's tree and of the package's in internals, folders before their contents."""
    pages = README, PAGES["docs/internals.md"]
    lines = [
        line
        for page in pages
        for block in blocks("text", page)
        if block[0].startswith("harness/")
        for line in block
    ]
    paths: list[Path] = []
    parents: list[Path] = []
    for line in filter(str.strip, lines):
        depth = (len(line) - len(line.lstrip())) // 2
        name = re.split(r"\s{2,}", line.strip())[0]
        path = Path(*parents[:depth][-1:], name.rstrip("/"))
        assert (ROOT / path).is_dir() == name.endswith("/"), f"{path}: the tree says {name!r}"
        parents[depth:] = [path]
        paths.append(path)
    return paths


def children(folder: Path) -> set[Path]:
    names = [entry.name for entry in (ROOT / folder).iterdir()]
    return {folder / name for name in names if name[0] not in "._" and name not in NOT_SHOWN}


def test_the_tree_exists_and_shows_every_folder_at_the_root_and_all_children_of_a_folder_or_none():
    paths = tree()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    at_root = {p for p in children(Path()) if (ROOT / p).is_dir() and not p.name.endswith(".egg-info")}
    assert at_root == {path for path in paths if path.parent == Path() and (ROOT / path).is_dir()}
    opened = {path.parent for path in paths} - {Path()}
    assert Path("harness") in opened
    assert {f: {p for p in paths if p.parent == f} for f in opened} == {f: children(f) for f in opened}


def commands(program: str, text: str = DOCS) -> list[list[str]]:
    lines = [line.strip().removeprefix("$ ") for block in blocks("sh", text) for line in block]
    prose = FENCE.sub("", text)
    lines += re.findall(r"`([^`\n]+)`", prose)
    # A word on its own (`harness`) names the package, not a command.
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]


COMMAND_LINE = get_command(cli.app)


def verb(words: list[str]):
    command = COMMAND_LINE
    for word in words:
        if not getattr(command, "commands", None):
            break
        assert word in command.commands, f"the docs call `harness {' '.join(words)}`"
        command = command.commands[word]
    return command


def options(command) -> set[str]:
    return {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)} | OPTIONS_OF_ALL


def test_readme_shows_every_verb_and_make_in_at_most_200_lines():
    assert set(COMMAND_LINE.commands) <= {words[0] for words in commands("harness", README) if words}
    assert len(README.splitlines()) <= 200
    assert ["compare"] in commands("make", README)
    assert ["test"] in commands("make", README)


def test_every_harness_command_and_make_target_in_the_docs_is_one_of_the_cli_and_the_makefile():
    for words in commands("harness"):
        verbs = [word for word in words if not word.startswith("-")]
        flags = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert flags <= options(verb(verbs)), f"harness {' '.join(words)}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for words in commands("make") for word in words if "=" not in word} <= targets


def walk_commands(command, name: str = "harness"):
    yield name, command
    for child, below in getattr(command, "commands", {}).items():
        yield from walk_commands(below, f"{name} {child}")


EVERY = dict(walk_commands(COMMAND_LINE))
GROUPS = {name: command for name, command in EVERY.items() if getattr(command, "commands", None)}
VERBS = {name: command for name, command in EVERY.items() if name not in GROUPS}


def test_every_verb_and_option_has_help_and_a_group_lists_each_of_its_commands_in_one_uncut_line():
    for name, command in EVERY.items():
        assert command.help, name
        assert [p.name for p in command.params if p.param_type_name == "option" and not p.help] == [], name
    for name, command in GROUPS.items():
        with command.make_context(name, [], resilient_parsing=True, terminal_width=80) as context:
            lines = command.get_help(context).splitlines()
        for verb_name, subcommand in command.commands.items():
            line = next(line for line in lines if line.startswith(f"  {verb_name} "))
            assert line.split(maxsplit=1)[1] == subcommand.help.partition("\n")[0]


def test_every_verb_shows_an_example_of_itself_with_options_that_it_has():
    for name, command in VERBS.items():
        examples = example_commands(command)
        assert examples, name
        for example in examples:
            words = shlex.split(example)
            assert example.startswith(name)
            assert verb(words[1:]).name == command.name
            flags = {word.partition("=")[0] for word in words if word.startswith("-")}
            assert flags <= options(command), name


def test_every_verb_and_every_option_stands_in_the_reference():
    sections = dict(
        re.findall(r"^## `(harness [^`]+)`\n(.*?)(?=^## )", reference("verbs"), re.MULTILINE | re.DOTALL)
    )
    assert sections.keys() == VERBS.keys()
    for name, command in VERBS.items():
        flags = {option for option in options(command) - OPTIONS_OF_ALL if option.startswith("-")}
        assert {flag for flag in flags if f"`{flag}" not in sections[name]} == set(), name


def test_every_key_of_the_experiment_stands_in_the_reference_with_its_meaning():
    sections = dict(
        re.findall(r"^## `[^`]+` \{ #(\w+) \}(.*?)(?=^## |\Z)", reference("keys"), re.MULTILINE | re.DOTALL)
    )
    of_spec = (model for model in spec.Spec.__subclasses__() if model.__module__.startswith(spec.__name__))
    models = {model.__name__.lower(): model for model in of_spec}
    assert sections.keys() == models.keys()
    for name, model in models.items():
        rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", sections[name], re.MULTILINE)
        assert [key for key, _ in rows] == list(model.model_fields)
        assert [key for key, meaning in rows if not meaning.strip()] == []


def test_every_plugin_stands_in_the_reference():
    names = {n for kind in ("methods", "prompting", "regularizers", "metrics") for n in plugins.names(kind)}
    assert {name for name in names if f"`{name}`" not in reference("plugin_parameters")} == set()


def test_every_key_that_the_docs_name_is_one_of_the_experiment():
    sections = "gate|decide|nightly|rescue|target"
    keys = re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z_]+(?:\.[a-z_]+)*)", DOCS)
    known_keys = map_purposes("keys").keys()
    endings = ("yaml", "yml", "xml", "md", "json")
    assert {key for key in keys if key not in known_keys and key.rpartition(".")[2] not in endings} == set()


def table(first: str, text: str = DOCS) -> list[list[str]]:
    lines = text.split(f"\n| {first} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_exit_code_stands_in_the_reference_and_in_readme():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if hasattr(kind, "exit_code")]
    codes = {str(kind.exit_code) for kind in kinds} | {"0", "3", "4", "130"}
    assert codes == {row[0] for row in table("exit code", reference("verbs"))}
    sentence = re.search(r"^Exit codes: (.+)$", README, re.MULTILINE)[1]
    assert codes == set(re.findall(r"\d+", sentence))


def test_every_column_of_the_result_table_is_explained():
    of_quickstart = ExperimentReport("support", "smollm2-135m", "exact_match", ())
    explained = [(row[0].strip("`"), row[1]) for row in table("column")]
    heads = result_headings(of_quickstart).items()
    columns = [(head.replace("\n", " "), CANDIDATE_COLUMNS[name].meaning) for name, head in heads]
    assert explained == columns, "docs/howto/reports.md has a row for each name in RESULT_TABLE"


def example_file(path: str) -> str:
    return next(
        "\n".join(block)
        for language in ("python", "yaml")
        for block in blocks(language)
        if block[0] == f"# {path}"
    )


@pytest.fixture
def readme_experiment(tmp_path):
    (tmp_path / "tickets").mkdir()
    labels = ("card lost", "pin blocked", "refund", "new card")
    rows = [(f"{word} {label}?", label) for word in ("Where is my", "Why the") for label in labels]
    train = [{"text": text, "label": label} for text, label in [*rows, ("Rates?", "exchange rate")]]
    (tmp_path / "tickets" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    test = "".join(f"Help with {label},{label}\n" for label in labels) + "WHERE is my  refund?,refund\n"
    (tmp_path / "tickets" / "test.csv").write_text("text,label\n" + test)
    text = next("\n".join(block) for block in blocks("yaml") if block[0].startswith("name:"))
    (tmp_path / "harness.yaml").write_text(text)
    return tmp_path


def test_the_experiment_of_readme_loads_from_any_folder_and_its_data_is_read_as_it_says(readme_experiment):
    loaded = config.load(readme_experiment / "harness.yaml")
    assert [suite.name for suite in loaded.experiment.suites] == ["general"]
    rates = ["lora[learning_rate=0.0002]", "lora[learning_rate=0.001]"]
    assert [name for name in loaded.selected if name.startswith("lora")] == rates
    items = data.load_task(loaded.experiment.target, 0)
    assert len(items.test) == 5
    assert len(items.train) + len(items.validation) == 7  # one of another label and one leak are removed
    assert len(items.removed) == 2


PARTS = [
    block
    for block in blocks("yaml")
    if block[0].partition(":")[0] in {*spec.Experiment.model_fields} - {"name"}
]


@pytest.mark.parametrize("block", PARTS, ids="\n".join)
def test_a_part_of_an_experiment_in_the_docs_loads(readme_experiment, block):
    for name in ("from-axolotl", "merged", "last-years-model", "runs/exports/RUN/gguf-q8_0"):
        (readme_experiment / name).mkdir(parents=True)
    (readme_experiment / "from-axolotl" / "adapter_config.json").write_text("{}")
    rows = ("general", "pairs", "curated", "forum", "train", "test", "documents", "changed", "new_documents")
    for name in rows:
        row = {"prompt": "Greet", "reference": "Ahoy", "chosen": "Ahoy", "rejected": "Hm"}
        (readme_experiment / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    experiment = YAML(typ="safe").load(readme_experiment / "harness.yaml")
    experiment["target"]["data"] |= {"pairs": "pairs.jsonl", "documents": "documents.jsonl"}
    experiment["candidates"]["lora"] = {"method": "lora"}
    for key, section in YAML(typ="safe").load("\n".join(block)).items():
        experiment[key] = {**experiment.get(key, {}), **section} if isinstance(section, dict) else section
    (readme_experiment / "harness.yaml").write_text(json.dumps(experiment))
    assert config.load(readme_experiment / "harness.yaml").selected


def test_the_experiment_that_gates_an_adapter_made_elsewhere_loads_with_its_rows(tmp_path):
    (tmp_path / "from-axolotl").mkdir()
    (tmp_path / "from-axolotl" / "adapter_config.json").write_text("{}")
    for name, prompts in (("train", ("Greet", "Ask", "Thank", "Leave", "Stay")), ("test", ("Answer",))):
        rows = [json.dumps({"prompt": prompt, "reference": "Ahoy"}) + "\n" for prompt in prompts]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    (tmp_path / "harness.yaml").write_text(example_file("release/harness.yaml"))
    loaded = config.load(tmp_path / "harness.yaml")
    assert loaded.selected == ("prompt", "theirs")
    items = data.load_task(loaded.experiment.target, 0)
    assert (len(items.train), len(items.validation), len(items.test)) == (4, 1, 1)


def test_the_row_of_readme_is_an_item(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(blocks("json")[0]))
    task = spec.Task(name="row", data=spec.TaskData(test=str(tmp_path / "rows.jsonl")))
    item = data.load_task(task, 0).test[0]
    assert (item.prompt, item.references) == ("Where is my parcel?", ("delivery",))
    assert (item.cluster, item.slice) == ("parcels", "behaviour")


def test_the_suites_of_readme_load_and_its_endpoints(readme_experiment):
    path, suites = readme_experiment / "harness.yaml", readme_experiment / "suites"
    (suites / "house").mkdir(parents=True)
    (suites / "house" / "style.jsonl").write_text('{"prompt": "Greet", "reference": "Ahoy"}\n')
    for name in ("house", "catalogue"):
        (suites / f"{name}.yaml").write_text(example_file(f"suites/{name}.yaml"))
    house, catalogue = (
        config.load(path, [f"suites=[suites/{name}.yaml]"]).experiment.suites[0].tasks
        for name in ("house", "catalogue")
    )
    assert house[0].margin == 0.05
    assert [task.name for task in catalogue] == ["winogrande", "arc_easy", "gsm8k"]

    block = next(block for block in blocks("yaml") if any("method: endpoint" in line for line in block))
    written = [line.strip().partition(":") for line in block if line.startswith("  ")]
    loaded = config.load(path, [f"candidates.{name}={recipe}" for name, _, recipe in written])
    assert {name for name, *_ in written} <= set(loaded.selected)


def plugin(path: str, folder: Path):
    file = folder / Path(path).name
    file.write_text(example_file(path))
    return load_file(file)


ASKED = Example("e", ({"role": "user", "content": "Which queue?"},), references=("billing",))


def test_the_metric_and_prompting_of_readme_score_and_ask(tmp_path):
    task = spec.Task(name="t", data=spec.TaskData())
    metric = plugin("harness/metrics/starts_right.py", tmp_path).metric(task)
    assert metric.name == "starts_right"
    assert metric.score(Output("Billing, I think"), ASKED) == (1.0,)
    assert metric.score(Output("no billing"), ASKED) == (0.0,)

    module = plugin("harness/metrics/length_within.py", tmp_path)
    metric = module.metric(task, module.Params(low=2, high=3))
    assert [metric.score(Output(text), ASKED) for text in ("one", "one two", "1 2 3 4")] == [(0,), (1,), (0,)]
    assert not metric.reads(ASKED)

    module = plugin("harness/prompting/reminder.py", tmp_path)
    context = PromptingContext(spec.Task(name="t", data=spec.TaskData()), (), (), 0)
    prompted = module.build(context, module.Params(text="One word."))(ASKED)
    assert prompted.prompt == "Which queue?\n\nOne word."
    assert (prompted.id, prompted.references) == (ASKED.id, ASKED.references)


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "rate"), [("ia3", 0.1), ("orpo", 0.01)])
def test_the_methods_of_the_docs_train_weights_that_can_be_opened(tmp_path, tiny, own_cache, name, rate):
    module = plugin(f"harness/methods/{name}.py", tmp_path)
    source, machine = hub.resolve(str(tiny)), Machine("cpu", "CPU", "fp32", 100.0)
    rows = (replace(ASKED, rejected="delivery"),) * 4
    with SilentProgress().stage("training") as advance:
        fields = {"source": source, "machine": machine, "seed": 0, "advance": advance, "pairs": rows}
        context = FitContext(folder=tmp_path / "fit", train=rows, validation=rows[:1], **fields)
        fit = module.METHOD.fit(context, module.Params(max_steps=2, learning_rate=rate))
    if name == "orpo":
        assert fit.training.n_tokens == 2 * tiny_methods.count_tokens(tiny, rows[: fit.training.n_pairs])
    host = ModelHost(source, machine)
    encoded = host.base.encode(ASKED.messages, "billing")
    before = host.base.loglikelihood([encoded[:2]])[0].logprob
    with host.use_adapter(fit.folder / "adapter", fit.digest) as candidate:
        after = candidate.loglikelihood([encoded[:2]])[0].logprob
    assert after > before if name == "ia3" else after != before  # TRL's ORPO learns prompts too


def test_the_regularizers_of_the_docs_freeze_and_hold_what_they_say(tmp_path, tiny):
    from transformers import AutoModelForCausalLM

    module = plugin("harness/regularizers/frozen_embeddings.py", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    module.prepare(model, module.Params())
    embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    assert {id(p) for p in model.parameters() if not p.requires_grad} == embeddings

    from torch import nn

    module = plugin("harness/regularizers/l1.py", tmp_path)
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    nn.init.constant_(model.weight, -3.0)
    (term,) = module.penalty(Start(model, 0), module.Params(strength=0.5))(1)
    assert term.item() == 3.0


@pytest.mark.e2e
def test_the_notebook_of_readme_runs_and_prints_what_the_command_does(finished_run, own_cache, tmp_path):
    folder = shutil.copytree(finished_run[0], tmp_path / "copy")
    code = example_file("notebook.py")
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    scores, verdict, decision = result.stdout.splitlines()
    expected = {f.label: f.target.score for f in finished_run[1].facts if f.label in ("prompt", "lora")}
    assert ast.literal_eval(scores) == expected, result.stderr
    assert verdict.split(":")[0] in ("PASS", "FAIL", "UNDECIDED")
    assert decision.startswith(("Ship", "Undecided"))


def read_staged_report(name: str) -> str:
    """Return a report as git has it staged: a later run changes the file, not what README shows."""
    command = ["git", "show", f":./reports/{name}"]
    staged = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    file = ROOT / "reports" / name
    if staged.returncode and not file.exists():
        reason = f"no reports/{name} yet; make compare writes it"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return file.read_text() if staged.returncode else staged.stdout


def read_kept_run(name: str, folder: Path) -> ExperimentReport:
    (folder / name).write_text(read_staged_report(name))
    return report.read(folder / name)


@pytest.fixture
def kept_run(tmp_path):
    return read_kept_run("support.json", tmp_path)


def table_lines(run: ExperimentReport) -> list[str]:
    console = Console(width=100, file=io.StringIO())
    console.print(report.terminal_table(run))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_result_table_of_readme_is_that_of_the_kept_run(kept_run):
    rows = table_lines(kept_run)
    block = README.split("<!-- result table -->\n```text\n")[1].split("\n```\n<!-- /result table -->")[0]
    lines = block.splitlines()
    assert not kept_run.smoke
    assert lines[: len(rows)] == rows
    assert " ".join(" ".join(lines[len(rows) :]).split()) == last_line(kept_run)


def test_readme_shows_what_the_full_experiment_adds(kept_run, tmp_path):
    full = read_kept_run("full.json", tmp_path)
    heading, *rows = table_lines(full)
    names = {facts.name for facts in kept_run.facts}
    added = [row for row in rows if row.split()[0] not in names]
    lines = README.split("<!-- full table -->\n```text\n")[1].split("\n```\n")[0].splitlines()
    assert lines == [heading, *added]
    assert len(added) == 4


def test_the_item_that_readme_pins_was_lost_in_the_kept_run(kept_run):
    ((candidate, task, item),) = re.findall(r"harness regressions add (\S+) (\S+)/(\S+) #", DOCS)
    lost = [of_task.lost for of_task in kept_run.comparisons[candidate] if of_task.task == task]
    assert item in lost[0]


def test_the_pictures_of_readme_and_docs_are_those_of_the_kept_run_and_of_every_page(kept_run):
    assert "](reports/support.front.svg)" in README
    assert read_staged_report("support.front.svg") == report.front_file(kept_run)

    pages = {path.stem for path in (ROOT / "dashboards").glob("*.py")} - {"app"}
    links = re.findall(r"\[!\[[^]]+\]\((.+?)\)\]\((.+?)\)", PAGES["docs/howto/reports.md"])
    assert {picture for picture, _ in links} == {f"../../dashboards/screenshots/{name}.png" for name in pages}
    assert all(picture == link for picture, link in links)


def test_every_form_of_a_report_is_explained(finished_run, tmp_path):
    written = [path.name.replace("tiny", "support") for path in report.write(finished_run[1], tmp_path)]
    assert sorted(row[0].strip("`") for row in table("file")) == sorted(written)


def test_contributing_lists_every_slow_file_and_the_order_of_the_modules():
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    listed = set(re.findall(r"^\| `(test_\w+\.py)` \|", contributing, re.MULTILINE))
    assert listed == {file.name for file in (ROOT / "tests" / "slow").glob("test_*.py")}

    order = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    names = [name for name in ORDER if {Path("harness", name), Path("harness", f"{name}.py")} & set(tree())]
    assert re.findall(r"\w+", order) == names


NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"

CELLS = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, object]) -> object:
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    tree = ast.parse("\n".join(lines))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


def test_the_notebook_shows_scores_as_a_frame_and_ends_in_what_a_terminal_shows(
    tiny, own_cache, tmp_path, monkeypatch
):
    tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n  bag: {method: classifier}\n")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    *_, frame, shown_last = [run("".join(cell["source"]), names) for cell in CELLS]
    assert sorted(frame["candidate"]) == ["bag", "prompt"]
    assert (frame["low"] <= frame["score"]).all()
    assert list(frame["score"]) == sorted(frame["score"], reverse=True)

    printed = io.StringIO()
    report.terminal(shown_last, Console(file=printed, width=100))
    page = html.unescape(re.sub(r"<[^>]+>", "", shown_last._repr_html_()))
    assert page.split() == printed.getvalue().split()


TUTORIAL = (
    PAGES["docs/howto/edit_data.md"].split("## From a messy file to a comparison\n")[1].split("\n## ")[0]
)


BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)


@pytest.mark.e2e
def test_each_command_of_the_tutorial_ends_well_prints_what_it_shows_and_changes_no_input(command, tmp_path):
    verbs = []
    for (language, text), (next_language, output) in pairwise([*BLOCKS, ("", "")]):
        if language in ("csv", "yaml"):
            name = {"csv": "tickets.csv", "yaml": "harness.yaml"}[language]
            (tmp_path / name).write_text(text, "utf-8")
        for line in text.splitlines() if language == "sh" else ():
            printed = command(*shlex.split(line)[1:], check=0).stdout
            verbs.append(line.split()[2])
            lines = iter(printed.splitlines())
            expected = output.splitlines() if next_language == "text" else []
            assert [shown_line for shown_line in expected if shown_line not in lines] == [], printed
            if line == "harness compare --dry-run":
                assert {"prompt", "ranked", "lora"} <= {row.split("  ")[0] for row in printed.splitlines()}
    assert verbs == ["check", "clean", "dedup", "split", "--dry-run", "augment"]
    written = next(text for language, text in BLOCKS if language == "csv")
    assert (tmp_path / "tickets.csv").read_text("utf-8") == written
    assert not (tmp_path / "runs").exists()


REPORTS = ROOT / "reports"


def test_pages_are_what_their_figures_give_and_fifty_findings_that_nobody_planted_were_read():
    findings = json.loads(READ.read_text("utf-8"))
    assert sum(len(lines) for checks in findings.values() for lines in checks.values()) >= 50
    for name, page in (
        ("data_check", partial(data_check_page.page, verdicts=findings)),
        ("mended_rows", mended_rows.page),
    ):
        figures = json.loads((REPORTS / f"{name}.json").read_text("utf-8"))
        assert (REPORTS / f"{name}.md").read_text("utf-8") == page(figures)
