"""A killed run loses at most the block in flight; rows and weights are found by their inputs; limits."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_experiment
from fake_rows import script_candidate

from harness import config, store
from harness.evaluation.candidates import base_weights
from harness.evaluation.row_sets import prompting_digest, suite_sets, target_sets
from harness.evaluation.runner import fill
from harness.experiment import Scope, prepare_session, run_candidate
from harness.experiment.candidate_weights import ensure_weights
from harness.experiment.preparation import SMOKE_ITEMS, SMOKE_LIMITS, narrow
from harness.progress import SilentProgress
from harness.records import BLOCK, Document

pytestmark = pytest.mark.usefixtures("own_cache")


def session(path, *overrides, scope=Scope(), progress=None):  # noqa: B008
    return prepare_session(config.load(path, overrides), scope, progress or SilentProgress())


@pytest.fixture
def path(tiny, tmp_path):
    return tiny_experiment.write(tmp_path, tiny)


@pytest.fixture
def long_session(path):
    tiny_experiment.write_facts(path.parent, 2 * BLOCK + 22)
    return session(path)


def rows_of(setup, task):
    return next(s for s in suite_sets(setup, base_weights(setup.source)) if s.measured.task.name == task)


def interrupt_after(n, prompts):
    def answer(text):
        if len(prompts) == n:
            raise KeyboardInterrupt
        prompts.append(text)
        return text

    return script_candidate(answer)


def test_a_kill_loses_only_the_block_in_flight_and_what_is_there_is_not_asked_again(long_session):
    rows, prompts = rows_of(long_session, "facts"), []
    with pytest.raises(KeyboardInterrupt):
        fill(long_session, interrupt_after(2 * BLOCK + 12, prompts), [rows], "base")
    assert store.list_stored_blocks(long_session.store, rows.identity, rows.ids) == {0, 1}
    assert not store.has_rows(long_session.store, rows.identity, rows.ids)

    prompts.clear()
    fill(long_session, interrupt_after(None, prompts), [rows], "base")
    assert prompts == [e.prompt for e in rows.job().examples[2 * BLOCK :]]
    stored = store.read_rows(long_session.store, rows.identity.digest)
    assert [(r.example_id, r.text) for r in stored] == [(e.id, e.prompt) for e in rows.job().examples]

    prompts.clear()
    fill(long_session, interrupt_after(0, prompts), [rows], "base")
    assert prompts == []


def test_a_damaged_block_is_computed_again(long_session):
    rows, prompts = rows_of(long_session, "facts"), []
    with pytest.raises(KeyboardInterrupt):
        fill(long_session, interrupt_after(2 * BLOCK + 2, prompts), [rows], "base")
    (long_session.store.rows(rows.identity.digest) / "blocks" / "00001.jsonl").write_text('{"position":')
    prompts.clear()
    fill(long_session, interrupt_after(None, prompts), [rows], "base")
    assert len(prompts) == BLOCK + 22


# What rows and weights depend on


def identities(setup, name="prompt"):
    recipe = setup.experiment.candidates[name]
    weights = base_weights(setup.source)
    sets = [*target_sets(setup, recipe, weights, 0), *suite_sets(setup, weights)]
    return {s.name: s.identity.digest for s in sets}


def changed(path, *overrides, name="prompt"):
    before, after = identities(session(path), name), identities(session(path, *overrides), name)
    return {task for task in before if before[task] != after.get(task)}


TARGET = {"letters/validation", "letters/test"}
SUITES = {"sums/test", "facts/test", "prose/test"}

SETTINGS = {
    "gate.macro=0.01": set(), "decide.tau=1": set(), "name=other": set(), "candidates.lora.params.r=4": set(),
    "candidates.prompt.system=Be brief.": TARGET, "candidates.prompt.template=Q {prompt}": TARGET,
    "candidates.prompt.answer=rank": TARGET, "target.max_new_tokens=5": TARGET, "target.system=Be brief.": TARGET,
    "target.limit=5": {"letters/test"}, "precision=bf16": TARGET | SUITES,
}  # fmt: skip


def test_a_setting_changes_just_the_rows_that_depend_on_it(path):
    assert {override: changed(path, override) for override in SETTINGS} == SETTINGS


def test_rows_and_weights_are_found_by_what_they_depend_on_and_rows_by_the_class_of_device(path):
    setup = session(path)
    candidate = setup.candidates["bag"]
    weights = ensure_weights(setup, candidate, 0)
    elsewhere = replace(setup, machine=setup.machine._replace(device="cuda"))
    on_cpu, on_cuda = (target_sets(s, candidate.recipe, weights, 0)[1].identity for s in (setup, elsewhere))
    assert replace(on_cuda, device_class="cpu") == on_cpu
    assert on_cuda.digest != on_cpu.digest

    first = ensure_weights(setup, candidate, 0)
    (first.folder / "fit.json").touch()
    assert ensure_weights(session(path), candidate, 0) == first
    assert ensure_weights(session(path, "target.data.limits.train=20"), candidate, 0).digest != first.digest


IDENTITY = """
import json
from dataclasses import asdict
from types import SimpleNamespace
from harness.data import TaskItems
from harness.evaluation.session import join_items
from harness.evaluation.row_sets import identity
from harness.spec import Task
from harness.training import Weights
machine, source = SimpleNamespace(precision="fp32", device="cpu"), SimpleNamespace(template_digest="t")
session, weights = SimpleNamespace(machine=machine, source=source), Weights("classifier", "w", None)
asked = join_items(Task(name="a", data={}, num_fewshot=1), "capability", "s", TaskItems((), (), (), (), (), ()))
print(json.dumps(asdict(identity(session, weights, asked, "test", "p", "generate"))))
"""


def identity_by(folder):
    return json.loads(subprocess.check_output([sys.executable, "-c", IDENTITY], cwd=folder, text=True))


@pytest.mark.e2e
def test_rows_of_another_code_version_are_stored_elsewhere(tmp_path):
    package = shutil.copytree(Path(run_candidate.__file__).parents[1], tmp_path / "harness")
    before = identity_by(tmp_path)
    with (package / "evaluate.py").open("a") as code:  # code that changes without its version
        code.write("\n\nMORE = 1\n")
    assert identity_by(tmp_path) == before
    table = package / "code_versions.toml"
    written = table.read_text()
    for concern, field in (
        ("evaluation", "task_version"),
        ("prompting/few_shot", "task_version"),
        ("metrics/exact_match", "scoring_digest"),
    ):
        table.write_text(written.replace(f'["{concern}"]\nversion = ', f'["{concern}"]\nversion = 9'))
        after = identity_by(tmp_path)
        assert {name for name in before if before[name] != after[name]} == {field}, concern


def test_prompts_depend_on_the_rows_documents_and_seed_that_they_show(path):
    assert changed(path, "target.data.limits.train=20", name="prompt") == set()
    assert changed(path, "target.data.limits.train=20", name="shots") == TARGET
    setup = session(path)
    shots, plain = (setup.experiment.candidates[name] for name in ("shots", "prompt"))
    rag = shots.model_copy(update={"prompting": {"rag": {}}})
    documents = (Document("d", "Lamps", "A lamp is a lamp."),)
    items = replace(setup.target.items, documents=documents)
    with_documents = replace(setup, target=setup.target._replace(items=items))
    assert prompting_digest(setup.target, rag, 0) != prompting_digest(with_documents.target, rag, 0)
    assert prompting_digest(setup.target, shots, 0) != prompting_digest(setup.target, shots, 1)
    assert prompting_digest(setup.target, plain, 0) == prompting_digest(with_documents.target, plain, 1)


def test_shots_of_a_suites_task_come_from_its_own_training_rows(path):
    general = path.parent / "suites" / "general"
    shots = [{"id": f"s{n}", "prompt": f"Shot {n}?", "reference": f"answer {n}"} for n in range(5)]
    tiny_experiment.rows(general / "shots.jsonl", shots)
    splits = "{train: general/shots.jsonl, test: general/facts.jsonl}, num_fewshot: 2"
    text = tiny_experiment.GENERAL.replace("{test: general/facts.jsonl}", splits)
    (path.parent / "suites" / "general.yaml").write_text(text)
    messages = rows_of(session(path), "facts").job().examples[0].messages
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Shot")
    assert messages[-1]["content"].startswith("What follows")


def test_a_quick_run_and_a_limit_take_the_fewest_items_of_both(path):
    experiment = config.load(path).experiment
    narrowed = narrow(experiment, Scope(limit=4, quick=True))
    limits = narrowed.target.data.limits
    assert (limits.test, limits.train) == (4, SMOKE_LIMITS.train)
    assert {task.limit for suite in narrowed.suites for task in suite.tasks} == {4}
    narrowed = narrow(experiment, Scope(limit=1000, quick=True))
    assert narrowed.target.data.limits == SMOKE_LIMITS
    assert {task.limit for suite in narrowed.suites for task in suite.tasks} == {SMOKE_ITEMS}
    few = config.load(path, ["target.data.limits.train=8"]).experiment
    assert narrow(few, Scope(quick=True)).target.data.limits.train == 8
