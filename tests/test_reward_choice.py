"""The best of several answers by a reward model: made first, asked once, stored with the answers."""

import pytest
import tiny_experiment
from test_rewarded_experiment import write_experiment

from harness import config, store
from harness.config import load
from harness.experiment import Scope, prepare_session
from harness.experiment.candidate_weights import find_stored_weights
from harness.nightly.watchlist import targets
from harness.progress import SilentProgress
from harness.store import Store
from harness.training import score_answers

pytestmark = pytest.mark.usefixtures("own_cache")

CANDIDATES = """\
  judge: {method: reward, params: {r: 2, learning_rate: 0.01, max_length: 200}}
  first: {decoding: {temperature: 1.0, samples: 3}}
  best: {decoding: {temperature: 1.0, samples: 3, choose: best, by: judge}}
"""
OVERRIDES = ("suites=[]", "target.labels=[]", "target.metrics=[exact_match]", "target.truncated_scores=true")


@pytest.fixture(scope="module")
def file_and_report(tiny, tmp_path_factory):
    """An experiment compared once; the cache of its fixtures is left alone."""
    path = write_experiment(tmp_path_factory.mktemp("reward"), tiny, CANDIDATES)
    return path, tiny_experiment.run(path, *OVERRIDES)


def read_drawn_answers(path, name):
    at, run = Store(path.parent / "runs"), tiny_experiment.runs_of(path)[name]
    rows = run.rows["letters/test"]
    return store.read_rows(at, rows), store.read_drawn(at, rows)


@pytest.mark.e2e
def test_the_reward_model_is_made_first_and_its_choice_counts(file_and_report):
    path, report = file_and_report
    assert {facts.name for facts in report.facts} == {"first", "best"}
    session = prepare_session(load(path, OVERRIDES), Scope(), SilentProgress())
    made = find_stored_weights(session, session.candidates["judge"], 0)
    rows, drawn = read_drawn_answers(path, "best")
    items = {example.id: example for example in session.target.items.test}
    for row in rows:
        texts = [one.text for one in drawn[row.example_id]]
        base, chat = session.candidates["judge"].trained_base, session.target.task.chat_template
        given = score_answers(
            made.folder / "reward", base, session.machine, [items[row.example_id]] * 3, texts, chat
        )
        stored = [one.parts["reward:judge"][0] for one in drawn[row.example_id]]
        assert stored == pytest.approx(given, abs=1e-4)
        able = [k for k, one in enumerate(drawn[row.example_id]) if one.status == "ok"] or range(3)
        assert row.text == texts[max(able, key=lambda k: (stored[k], -k))]
    assert any(len({one.text for one in of}) > 1 for of in drawn.values())


def test_what_is_chosen_is_drawn_as_without_a_choice_and_rests_on_the_reward_model(file_and_report):
    path, _ = file_and_report
    plain, chosen = read_drawn_answers(path, "first")[1], read_drawn_answers(path, "best")[1]
    assert {k: [one.text for one in of] for k, of in plain.items()} == {
        k: [one.text for one in of] for k, of in chosen.items()
    }
    training = tiny_experiment.runs_of(path)["best"].training
    assert len(training.stands_on) == 1
    assert training.init_wall_s > 0


def test_a_night_refuses_a_choice_that_it_does_not_make(file_and_report):
    path, _ = file_and_report
    loaded = config.load(path, (*OVERRIDES, "nightly={candidates: [best, first]}"))
    session = prepare_session(loaded, Scope(), SilentProgress())
    found = dict(targets(loaded, session, {}))
    assert "in nights no judge and no reward model chooses" in str(found["best"])
    assert found["first"].name == "first"
