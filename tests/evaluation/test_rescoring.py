"""Changed metrics score stored answers again; rows before a run: templates, special tokens, all problems."""

import json
import shutil
import sys

import pytest
import tiny_experiment
import tiny_model
from checked_rows import write
from fake_rows import script_candidate
from tiny_experiment import session

from harness import config, experiment, metrics, plugins, store
from harness.cli import main
from harness.data import load_task, load_training_rows
from harness.errors import IncompatibleRuns, UserError
from harness.evaluation.candidates import base_weights
from harness.evaluation.row_sets import suite_sets, target_sets
from harness.evaluation.runner import fill
from harness.evaluation.stored_scores import rescore_stored
from harness.experiment import Scope, prepare_session, rescore_run
from harness.progress import SilentProgress
from harness.spec import Task

PROMPT = "  prompt: {method: base}\n"
STARTS = '''"""Whether an answer starts as it should."""

from harness.metrics import mean_metric


def metric(task):
    return mean_metric("starts", lambda output, example: float(output.text[:1] == example.references[0][:1]))
'''

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def path(tiny, tmp_path):
    return tiny_experiment.write(tmp_path, tiny, PROMPT)


def base_sets(setup):
    recipe, weights = setup.experiment.candidates["prompt"], base_weights(setup.source)
    return [*target_sets(setup, recipe, weights, 0), *suite_sets(setup, weights)]


def answer_all(setup, answer=str.upper):
    prompts = []

    def remember(text):
        prompts.append(text)
        return answer(text)

    fill(setup, script_candidate(remember), base_sets(setup), "base")
    return prompts


def rows(setup, name):
    row_set = next(s for s in base_sets(setup) if s.name == name)
    return store.read_rows(setup.store, row_set.identity.digest)


def list_lacking(setup):
    return {s.name for s in rescore_stored(setup, base_sets(setup))}


TARGET = {"letters/validation", "letters/test"}
SUITES = {"sums/test", "facts/test", "prose/test"}


# Scored again without a model


def test_what_only_judges_answers_asks_nobody_again(path):
    answer_all(session(path))
    changes = (
        "metrics=[contains,token_f1] truncated_scores=true primary=macro_f1 margin=0.01 description=Sorting."
    )
    for override in changes.split():
        assert list_lacking(session(path, f"target.{override}")) == set()


@pytest.mark.e2e
def test_rows_scored_again_are_those_of_asking_again(path, tmp_path):
    answer_all(session(path))
    settings = ("target.metrics=[contains,chrf]", "target.truncated_scores=true")
    again = session(path, *settings)
    assert list_lacking(again) == set()
    fresh = tiny_experiment.write(tmp_path / "fresh", again.source.path, PROMPT)
    anew = session(fresh, *settings)
    answer_all(anew)
    for name in TARGET:
        assert [drop_time(r) for r in rows(again, name)] == [drop_time(r) for r in rows(anew, name)]


def drop_time(row):
    return {name: getattr(row, name) for name in row.__slots__ if name != "compute_s"}


@pytest.mark.e2e
def test_compare_after_a_change_of_metric_loads_no_model(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, shutil.copytree(tiny, tmp_path / "model"), PROMPT)
    (tmp_path / "starts.py").write_text(STARTS)
    settings = ("target.metrics=[exact_match,starts.py]",)
    before = tiny_experiment.run(path, *settings)
    (tmp_path / "starts.py").write_text(STARTS.replace("float(", "1.0 - float("))

    loaded = config.load(path, ("target.primary=starts.py", *settings))
    setup = prepare_session(loaded, Scope(), SilentProgress())
    after = experiment.run_all(setup, loaded)
    assert setup.slot.host is None
    assert after.facts[0].speed.latency_p50_s == before.facts[0].speed.latency_p50_s
    for row in rows(setup, "letters/test"):
        started = row.text[:1] == row.references[0][:1]
        assert row.parts["starts"] == (1.0 - started if row.status == "ok" else 0.0,)


# The verb


def test_score_gives_a_run_of_the_new_scores_and_leaves_the_old_one(copy, monkeypatch, capsys):
    monkeypatch.chdir(copy.parent)
    old = store.list_runs(store.Store(copy.parent / "runs"))
    monkeypatch.setattr(sys, "argv", ["harness", "score", "lora", "target.metrics=[contains]", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    (printed,) = json.loads(capsys.readouterr().out).items()
    assert printed[1]["letters"].keys() == {"contains"}
    by_id = {run.run_id: run for run in store.list_runs(store.Store(copy.parent / "runs"))}
    assert len(by_id) == len(old) + 1
    assert by_id[printed[0]].training == next(run for run in old if run.candidate == "lora").training


def test_a_run_of_other_items_cannot_be_scored_again_and_one_scored_so_stays_as_it_is(copy):
    before = store.list_runs(store.Store(copy.parent / "runs"))
    changed = session(copy, "target.system=Be brief.")
    (prompt,) = [run for run in before if run.candidate == "prompt"]
    with pytest.raises(IncompatibleRuns, match=r"letters/validation, letters/test.*harness compare"):
        rescore_run(changed, prompt)
    assert store.list_runs(changed.store) == before
    setup = session(copy)
    before = store.list_runs(setup.store)
    for run in before:
        assert rescore_run(setup, run)[0] == run
    assert store.list_runs(setup.store) == before


# Never reused


@pytest.mark.e2e
def test_rows_of_an_edited_item_another_question_precision_tokenizer_template_or_weights_are_not_reused(
    path, tmp_path
):
    answer_all(session(path))
    for override, tasks in (
        ("target.max_new_tokens=9", TARGET),
        ("target.stop=[x]", TARGET),
        ("candidates.prompt.system=Be brief.", TARGET),
        ("precision=bf16", TARGET | SUITES),
    ):
        assert list_lacking(session(path, override)) == tasks
    for name, options in (
        ("bos", {"adds_bos": True}),
        ("start", {"template": tiny_model.STARTED}),
        ("1", {"seed": 1}),
    ):
        base = tiny_model.build(tmp_path / name, **options)
        assert list_lacking(session(path, f"base_model={base}")) == TARGET | SUITES
    for name, edit, task in (
        ("letters/test.jsonl", {"prompt": "Another question?"}, "letters/test"),
        ("letters/test.jsonl", {"reference": "money"}, "letters/test"),
        ("general/sums.jsonl", {"choices": ["1", "7"]}, "sums/test"),
        ("general/prose.jsonl", {"text": "Another text."}, "prose/test"),
    ):
        file = path.parent / "suites" / name
        before = file.read_text()
        change(path, name, 1, **edit)
        assert list_lacking(session(path)) == {task}
        file.write_text(before)


def test_every_shipped_metric_is_scored_from_what_a_row_keeps(path):
    left_out = {"bits_per_byte", "perplexity", "follows", "accuracy"}
    scored = [name for name in plugins.names("metrics") if name not in left_out]
    answer_all(session(path))
    again = session(path, f"target.metrics=[{','.join(scored)}]")
    assert list_lacking(again) == set()
    assert (
        rows(again, "letters/test")[0].parts.keys()
        == set(scored)
        == set(metrics.load_metrics(again.target.task))
    )


_EACH, _, _TURN = tiny_model.CHATML.partition("%}")
ALTERNATES = (
    _EACH
    + "%}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    + "{{ raise_exception('roles must alternate') }}{% endif %}"
    + _TURN
)
TWICE = [{"role": "user", "content": "Where is"}, {"role": "user", "content": "my lamp box?"}]
CANDIDATES = "  prompt: {method: base}\n  lora: {method: lora, params: {r: 2}}\n"


def write_free_answers(folder, base, *, extra="", pairs=()):
    path = tiny_experiment.write(folder, base, CANDIDATES + extra, pairs=pairs)
    target = folder / "suites" / "letters.yaml"
    target.write_text(target.read_text().replace("    labels: [late, money]\n", "").replace(", macro_f1", ""))
    return path


def change(path, file, line, **fields):
    file = path.parent / "suites" / file
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    rows[line - 1] = {name: v for name, v in {**rows[line - 1], **fields}.items() if v is not None}
    tiny_experiment.rows(file, rows)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A base whose template refuses turns that do not alternate."""
    return tiny_model.build(tmp_path_factory.mktemp("strict"), template=ALTERNATES)


def test_a_row_that_the_template_does_not_write_is_named_before_anything_runs(command, tmp_path, strict):
    path = write_free_answers(tmp_path, strict)
    change(path, "letters/train.jsonl", 30, prompt=None, messages=TWICE)
    code, _, stderr = command("compare", "-c", path)
    assert code == 2
    assert "letters/train.jsonl:30: found a conversation that the chat template does not write" in stderr
    assert "(roles must alternate)" in stderr
    assert "next: change its turns to such as the template takes, remove the row" in stderr
    assert not (tmp_path / "runs" / "rows").exists()


LAST_TURN = "{% set messages = messages[-1:] %}"
ENDLESS = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
ANSWERED = [
    {"role": "user", "content": "Its number is 7."},
    {"role": "assistant", "content": "Yes."},
    TWICE[1],
]
PAIR = {"messages": TWICE, "chosen": "late", "rejected": "money"}
# A template, added candidates and pairs, and the message.
UNWRITTEN = {
    "a turn left out": (
        *(LAST_TURN + tiny_model.CHATML, "", ()),
        "test.jsonl:2: found a turn of 'user' that the chat template leaves out",
    ),
    "pairs": (ALTERNATES, "", [PAIR], "pairs.jsonl:1: found a conversation"),
    "no end": (
        *(ENDLESS + tiny_model.CHATML, "", ()),
        "found a chat template that takes more than 1,000,000 steps",
    ),
}


@pytest.mark.parametrize("name", UNWRITTEN)
def test_what_a_template_does_not_write_is_named(command, tmp_path, name):
    template, candidates, pairs, expected = UNWRITTEN[name]
    base = tiny_model.build(tmp_path / "base", template=template)
    path = write_free_answers(tmp_path, base, extra=candidates, pairs=pairs)
    if name == "a turn left out":
        change(path, "letters/test.jsonl", 2, prompt=None, messages=ANSWERED)
    code, _, stderr = command("compare", "-c", path, "--dry-run")
    assert (code, expected in stderr) == (2, True)


LABELS = ("refund", "card")
TEST = [{"prompt": f"t{i} v{i * 3}", "reference": LABELS[i % 2]} for i in range(6)]
GOOD = [{"prompt": f"q{i} w{i * 7}", "reference": LABELS[i % 2]} for i in range(20)]
FAULTY = [
    *GOOD, {"prompt": "a b c", "reference": "refnd"}, {"prompt": "", "reference": "card"},
    {"prompt": "x y", "reference": ""}, TEST[3],
]  # fmt: skip
LINES = {
    21: "reference 'refnd'", 22: "an empty prompt", 23: "an empty reference", 24: "'t3 v9', the question of",
}  # fmt: skip


def problems(load):
    with pytest.raises(UserError) as error:
        load()
    return error.value.problems


def assert_all_lines(listed):
    texts = {int(p.where.rpartition(":")[2]): p.found for p in listed}
    assert texts.keys() == LINES.keys()
    assert all(texts[line].startswith(begins) for line, begins in LINES.items())


def task(tmp_path, train):
    data = {"train": write(tmp_path / "a.jsonl", train), "test": write(tmp_path / "b.jsonl", TEST)}
    return Task(name="rows", data=data, labels=LABELS)


def test_all_problems_of_rows_come_in_one_round_and_none_hides_another(tmp_path):
    assert_all_lines(problems(lambda: load_task(task(tmp_path, FAULTY), 0)))

    empty = [{"prompt": "", "reference": "card"}] * 30
    listed = problems(lambda: load_task(task(tmp_path, [*FAULTY, *empty]), 0))
    assert {21, 24} <= {int(p.where.rpartition(":")[2]) for p in listed if ":" in p.where}
    assert any(p.found.startswith("32 rows that cannot be used; 4 are shown") for p in listed)

    target, file = task(tmp_path, GOOD), write(tmp_path / "own.jsonl", FAULTY)
    assert_all_lines(problems(lambda: load_training_rows(target, load_task(target, 0), [file], None, 0)))


def test_rows_made_from_test_items_alone_are_refused(tmp_path):
    target = task(tmp_path, GOOD)
    rewordings = [
        {"prompt": f"in other words {i}", "reference": "card", "augmented_from": TEST[i]["prompt"]}
        for i in range(3)
    ]
    file = write(tmp_path / "own.jsonl", rewordings)
    (problem,) = problems(lambda: load_training_rows(target, load_task(target, 0), [file], None, 0))
    assert (problem.where, problem.found) == (str(file), "only rows that are evaluated too")
