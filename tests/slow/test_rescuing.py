"""The fine-tune that collapses chat is rescued, or the report says that nothing passes."""

import collapsing
import pytest

from harness import config, store
from harness.analysis.gate_verdict import judge
from harness.experiment import Scope, prepare_session, read_both_arms, rescue, rescue_trials, study_of_session
from harness.experiment.stored_rows import Reader
from harness.progress import SilentProgress

pytestmark = pytest.mark.weekly

# Half of so few items cannot show a margin of 2 points for any candidate. One training keeps the test short.
CHANCE = [
    "gate.macro=0.05", "gate.each=0.15", "gate.validity=0.05",
    "rescue={steps: [scale, replay], scales: [0.5, 0.25], shares: [0.1], max_trained: 1}",
]  # fmt: skip


@pytest.fixture(scope="module")
def experiment_file(tmp_path_factory):
    return collapsing.run(tmp_path_factory.mktemp("collapse"), collapsing.HALF)[0]


def open_experiment(collapsed):
    loaded = config.load(collapsed, [*collapsing.HALF, *CHANCE])
    return prepare_session(loaded, Scope(), SilentProgress()), loaded


@pytest.fixture(scope="module")
def rescue_result(experiment_file):
    session, loaded = open_experiment(experiment_file)
    return rescue.run(rescue.prepare(session, loaded.selected, "lora"))


@pytest.fixture(scope="module")
def outcome_on(experiment_file, rescue_result):
    session, loaded = open_experiment(experiment_file)
    prepared = rescue.prepare(session, loaded.selected, "lora")
    session = prepared.session
    study = study_of_session(session, Reader(session.store, session.tasks))

    def outcome(tried, half):
        half_study = read_both_arms(study, store.get_run(session.store, tried.facts.run_id), half)
        return judge(half_study, session.experiment.gate, target=None, identical=False).verdict.outcome

    return outcome


def test_the_collapsed_run_itself_fails_on_the_half_that_is_searched(rescue_result, outcome_on):
    assert (
        rescue_result.original.search.verdict.outcome
        == outcome_on(rescue_result.original, "search")
        == "fail"
    )


def test_what_is_rescued_passes_on_both_halves_by_the_stored_rows_or_nothing_does(rescue_result, outcome_on):
    passed = [
        t for t in rescue_result.tried if t.search and t.search.gains and outcome_on(t, "search") == "pass"
    ]
    if rescue_result.rescued_trial:
        (chosen,) = passed
        assert (chosen.name, outcome_on(chosen, "confirm")) == (rescue_result.rescued_trial, "pass")
        assert chosen.facts.vs_untrained.low > 0
        assert rescue_result.sentence.startswith(f"Rescued: {chosen.name}")
    else:
        assert rescue_result.sentence.startswith("Nothing is rescued: ")
        assert [t.confirm is not None for t in passed] == [True] * len(passed)
        assert len(passed) <= 1
        assert len(rescue_result.tried) == 3 or passed
        assert not any(outcome_on(t, "confirm") == "pass" and t.facts.vs_untrained.low > 0 for t in passed)


def test_the_front_holds_what_nothing_beats_in_both(rescue_result, tmp_path):
    points = {
        t.name: (t.facts.target.score, t.capability_change.score)
        for t in (rescue_result.original, *rescue_result.tried)
        if t.capability_change
    }
    beaten = {
        a
        for a, (x, y) in points.items()
        for u, v in points.values()
        if u >= x and v >= y and (u, v) != (x, y)
    }
    assert set(rescue_result.front)
    assert not set(rescue_result.front) & beaten
    assert {points[name] for name in rescue_result.front} == {points[name] for name in points.keys() - beaten}
    written = {path.suffix: path.read_text() for path in rescue_trials.write(rescue_result, tmp_path)}
    assert all(name in written[".svg"] and name in written[".md"] for name in points)


def test_a_replayed_training_was_given_the_bases_own_answers(rescue_result):
    trained = [t for t in rescue_result.tried if t.step == "replay" and t.facts.state == "done"]
    assert all(8 <= t.facts.training.n_replayed <= 16 for t in trained)
