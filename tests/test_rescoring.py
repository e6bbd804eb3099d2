"""A changed metric scores stored answers again; rows that answer something else are never reused."""

import json
import shutil
import sys

import pytest
import tiny_experiment
import tiny_model
from fake_rows import script_candidate

from harness import config, experiment, metrics, plugins, release, store
from harness.cli import main
from harness.errors import IncompatibleRuns
from harness.evaluation.candidates import base_weights
from harness.evaluation.rescoring import rescore_stored
from harness.evaluation.row_sets import suite_sets, target_sets
from harness.evaluation.runner import fill
from harness.experiment import Scope, prepare_session
from harness.progress import SilentProgress
from harness.records import BLOCK

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


def session(path, *overrides):
    return prepare_session(config.load(path, overrides), Scope(), SilentProgress())


def base_sets(made):
    recipe, weights = made.experiment.candidates["prompt"], base_weights(made.source)
    return [*target_sets(made, recipe, weights, 0), *suite_sets(made, weights)]


def answer_all(made, answer=str.upper):
    asked = []

    def remember(text):
        asked.append(text)
        return answer(text)

    fill(made, script_candidate(remember), base_sets(made), "base")
    return asked


def rows(made, name):
    found = next(s for s in base_sets(made) if s.name == name)
    return store.read_rows(made.store, found.identity.digest)


def list_lacking(made):
    return {s.name for s in rescore_stored(made, base_sets(made))}


TARGET = {"letters/validation", "letters/test"}
SUITES = {"sums/test", "facts/test", "prose/test"}


# Scored again without a model


@pytest.mark.parametrize(
    "override",
    [
        "target.metrics=[contains,token_f1]",
        "target.truncated_scores=true",
        "target.primary=macro_f1",
        "target.margin=0.01",
        "target.description=Sorting.",
    ],
)
def test_what_only_judges_answers_asks_nobody_again(path, override):
    answer_all(session(path))
    assert list_lacking(session(path, override)) == set()


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


def test_the_order_of_items_does_not_depend_on_the_metrics(path):
    before, after = (
        s.ids for s in (base_sets(session(path))[1], base_sets(session(path, "target.metrics=[bleu]"))[1])
    )
    assert before == after


def test_blocks_of_a_set_that_was_never_finished_are_scored_again_too(path):
    asked = [{"id": f"n{n}", "prompt": f"What follows {n}?", "reference": str(n)} for n in range(BLOCK + 36)]
    tiny_experiment.rows(path.parent / "suites" / "letters" / "test.jsonl", asked)
    first = session(path, "target.labels=[]", "target.metrics=[exact_match]")
    only = next(s for s in base_sets(first) if s.name == "letters/test")

    def dies(text, seen=[]):  # noqa: B006
        seen.append(text)
        if len(seen) > BLOCK:
            raise KeyboardInterrupt
        return text

    with pytest.raises(KeyboardInterrupt):
        fill(first, script_candidate(dies), [only], "base")
    again = session(path, "target.labels=[]", "target.metrics=[contains]")
    assert "letters/test" in list_lacking(again)
    answered = answer_all(again)
    assert len([text for text in answered if text.startswith("What follows") and "number" not in text]) == 36


@pytest.mark.e2e
def test_compare_after_a_change_of_metric_loads_no_model(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, shutil.copytree(tiny, tmp_path / "model"), PROMPT)
    (tmp_path / "starts.py").write_text(STARTS)
    settings = ("target.metrics=[exact_match,starts.py]",)
    before = tiny_experiment.run(path, *settings)
    (tmp_path / "starts.py").write_text(STARTS.replace("float(", "1.0 - float("))

    loaded = config.load(path, ("target.primary=starts.py", *settings))
    made = prepare_session(loaded, Scope(), SilentProgress())
    after = experiment.run_all(made, loaded)
    assert made.slot.host is None
    assert after.facts[0].latency_p50_s == before.facts[0].latency_p50_s
    for row in rows(made, "letters/test"):
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
    (shown,) = json.loads(capsys.readouterr().out).items()
    assert shown[1]["letters"].keys() == {"contains"}
    kept = {one.run_id: one for one in store.list_runs(store.Store(copy.parent / "runs"))}
    assert len(kept) == len(old) + 1
    assert kept[shown[0]].training == next(one for one in old if one.candidate == "lora").training


def test_a_run_of_other_items_cannot_be_scored_again_and_one_scored_so_stays_as_it_is(copy):
    before = store.list_runs(store.Store(copy.parent / "runs"))
    changed = session(copy, "target.system=Be brief.")
    (prompt,) = [one for one in before if one.candidate == "prompt"]
    with pytest.raises(IncompatibleRuns, match=r"letters/validation, letters/test.*harness compare"):
        release.rescore_run(changed, prompt)
    assert store.list_runs(changed.store) == before
    made = session(copy)
    before = store.list_runs(made.store)
    for one in before:
        assert release.rescore_run(made, one)[0] == one
    assert store.list_runs(made.store) == before


# Never reused


@pytest.mark.parametrize(
    ("name", "change", "tasks"),
    [
        ("letters/test.jsonl", {"prompt": "Another question?"}, {"letters/test"}),
        ("letters/test.jsonl", {"reference": "money"}, {"letters/test"}),
        ("general/sums.jsonl", {"choices": ["1", "7"]}, {"sums/test"}),
        ("general/prose.jsonl", {"text": "Another text."}, {"prose/test"}),
    ],
)
def test_rows_of_an_edited_item_are_not_reused(path, name, change, tasks):
    answer_all(session(path))
    file = path.parent / "suites" / name
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0] |= change
    tiny_experiment.rows(file, lines)
    assert list_lacking(session(path)) == tasks


@pytest.mark.parametrize(
    ("override", "tasks"),
    [
        ("target.max_new_tokens=9", TARGET),
        ("target.stop=[x]", TARGET),
        ("candidates.prompt.system=Be brief.", TARGET),
        ("precision=bf16", TARGET | SUITES),
    ],
)
def test_rows_of_another_question_or_precision_are_not_reused(path, override, tasks):
    answer_all(session(path))
    assert list_lacking(session(path, override)) == tasks


@pytest.mark.parametrize("other", [{"adds_bos": True}, {"template": tiny_model.STARTED}, {"seed": 1}])
def test_rows_of_another_tokenizer_template_or_weights_are_not_reused(path, tmp_path, other):
    answer_all(session(path))
    base = tiny_model.build(tmp_path / "other", **other)
    assert list_lacking(session(path, f"base_model={base}")) == TARGET | SUITES


def test_every_shipped_metric_is_scored_from_what_a_row_keeps(path):
    left_out = {"bits_per_byte", "perplexity", "follows", "accuracy"}
    named = [name for name in plugins.names("metrics") if name not in left_out]
    answer_all(session(path))
    again = session(path, f"target.metrics=[{','.join(named)}]")
    assert list_lacking(again) == set()
    assert (
        rows(again, "letters/test")[0].parts.keys()
        == set(named)
        == set(metrics.load_metrics(again.target.task))
    )
