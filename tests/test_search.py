"""A search tries what Optuna proposes by what was found before, is a sweep otherwise, and goes on where it was ended."""

from dataclasses import replace
from math import log10
from statistics import fmean

import pytest
import tiny_experiment

from harness import config
from harness.evaluation.candidates import resolve_candidates
from harness.experiment import Scope, prepare_session, report_stored
from harness.experiment.trials import _value, proposals
from harness.models.hub import resolve
from harness.progress import SilentProgress
from harness.records import Trial
from harness.report.document import markdown
from harness.report.sections import experiment_document

pytestmark = pytest.mark.usefixtures("own_cache")

SPACE = {"learning_rate": [1e-4, 1e-1, "log"], "r": [2, 4, 8], "lora_dropout": [0.0, 0.2, "linear"]}
SEARCHED = """\
  prompt: {method: base}
  found:
    method: lora
    params: {num_train_epochs: 1, max_length: 200}
    search: {learning_rate: [1e-4, 1e-1, log], r: [2, 4]}
    trials: TRIALS
"""


@pytest.fixture(scope="module")
def candidate(tiny, tmp_path_factory):
    path = tiny_experiment.write(tmp_path_factory.mktemp("one"), tiny, SEARCHED.replace("TRIALS", "12"))
    found = config.load(path).experiment
    recipe = found.candidates["found"].model_copy(update={"search": SPACE})
    experiment = found.model_copy(update={"candidates": {"found": recipe}})
    return resolve_candidates(experiment, {found.base_model: resolve(str(tiny))})["found"]


def walk_search(candidate, score, *, seed=0, sign=1):
    tried = []
    for point in proposals(candidate, seed, sign, tried):
        validation = score(point.params)
        tried.append(Trial(params=point.params, validation=validation))
    return [one.params for one in tried]


def distance(point):
    return abs(log10(point["learning_rate"]) + 2) + (point["r"] != 4)


class TestProposals:
    def test_are_as_many_as_trials_within_the_space(self, candidate):
        points = walk_search(candidate, lambda point: 0.5)
        assert len(points) == 12
        for point in points:
            assert 1e-4 <= point["learning_rate"] <= 1e-1
            assert point["r"] in (2, 4, 8)
            assert 0 <= point["lora_dropout"] <= 0.2

    def test_are_the_same_of_the_same_seed_and_findings_alone(self, candidate):
        first = walk_search(candidate, lambda point: -distance(point))
        assert walk_search(candidate, lambda point: -distance(point)) == first
        assert walk_search(candidate, lambda point: -distance(point), seed=1) != first
        other = walk_search(candidate, distance)
        assert other[:5] == first[:5], "the first five are drawn at random"
        assert other[5:] != first[5:]

    def test_of_more_trials_begin_as_those_of_fewer(self, candidate):
        many = replace(candidate, source=candidate.source.model_copy(update={"trials": 60}))
        more = replace(candidate, source=candidate.source.model_copy(update={"trials": 40}))
        longer = walk_search(many, lambda point: -distance(point))
        assert longer[:40] == walk_search(more, lambda point: -distance(point))
        assert longer[:12] == walk_search(candidate, lambda point: -distance(point))

    def test_come_nearer_to_what_scores_better_also_where_lower_is_better(self, candidate):
        many = replace(candidate, source=candidate.source.model_copy(update={"trials": 60}))
        for sign in (1, -1):
            found = walk_search(many, lambda point, sign=sign: -sign * distance(point), sign=sign)
            assert fmean(map(distance, found[-20:])) < 0.5 * fmean(map(distance, found[:10]))

    def test_go_on_after_a_training_that_diverged(self, candidate):
        points = walk_search(candidate, lambda point: None if point["learning_rate"] > 0.01 else 0.5)
        assert len(points) == 12

    def test_of_a_range_of_whole_numbers_are_whole(self, candidate):
        recipe = candidate.source.model_copy(update={"search": {"r": [2, 64, "log"]}})
        points = walk_search(replace(candidate, source=recipe), lambda point: 0.5)
        assert all(isinstance(point["r"], int) and 2 <= point["r"] <= 64 for point in points)


@pytest.mark.parametrize(
    ("written", "most_digits"),
    [([1.0001, 1.0004, "linear"], 7), ([1024.5, 1027.5, "linear"], 6), ([1e-5, 1e-3, "log"], 3)],
)
def test_points_of_a_narrow_range_are_apart_and_those_of_a_wide_one_are_short(written, most_digits):
    low, high, _ = written
    drawn = [_value(written, low + (high - low) * i / 15) for i in range(16)]
    assert len(set(drawn)) > 10
    assert all(low <= value <= high for value in drawn)
    assert all(value == float(f"{value:.{most_digits}g}") for value in drawn)


@pytest.fixture(scope="module")
def file_and_report(tiny, own_cache, tmp_path_factory):
    path = tiny_experiment.write(tmp_path_factory.mktemp("search"), tiny, SEARCHED.replace("TRIALS", "3"))
    return path, tiny_experiment.run(path)


def folders(path):
    return {f.name: (f / "fit.json").stat().st_mtime_ns for f in (path.parent / "runs" / "weights").iterdir()}


class TestASearch:
    def test_keeps_the_trial_that_is_best_on_validation_and_says_who_proposed_them(self, file_and_report):
        fact = next(f for f in file_and_report[1].facts if f.name == "found")
        tried = fact.training.sweep
        assert (fact.state, len(tried)) == ("done", 3)
        chosen = next(t for t in tried if t.chosen)
        assert chosen.validation == max(t.validation for t in tried)
        assert fact.training.searched_by.startswith("TPE of Optuna 5.")

    def test_is_shown_with_every_trial(self, file_and_report):
        text = markdown(experiment_document(file_and_report[1]))
        assert "Search: found" in text
        assert "3 trials on validation rows, proposed by TPE of Optuna" in text
        assert "was the best of 3 trials on validation" in text

    @pytest.mark.e2e
    def test_is_not_trained_again_and_goes_on_with_more_trials(self, file_and_report):
        path, _ = file_and_report
        before = folders(path)
        tiny_experiment.run(path)
        assert folders(path) == before
        more = tiny_experiment.run(path, "candidates.found.trials=5")
        after = folders(path)
        assert before.items() <= after.items()
        assert len(next(f for f in more.facts if f.name == "found").training.sweep) == 5

    @pytest.mark.e2e
    def test_with_fewer_trials_than_it_has_made_is_shown_and_chosen_of_those_alone(self, file_and_report):
        path, _ = file_and_report
        tiny_experiment.run(path, "candidates.found.trials=5")
        before = folders(path)
        less = tiny_experiment.run(path, "candidates.found.trials=3")
        assert folders(path) == before
        tried = next(f for f in less.facts if f.name == "found").training.sweep
        assert len(tried) == 3
        assert next(t for t in tried if t.chosen).validation == max(t.validation for t in tried)
        session = prepare_session(config.load(path, ["candidates.found.trials=3"]), Scope(), SilentProgress())
        shown = report_stored(session, ["prompt", "found"])
        assert len(next(f for f in shown.facts if f.name == "found").training.sweep) == 3

    @pytest.mark.e2e
    def test_that_was_ended_comes_by_the_same_points(self, file_and_report, tiny, tmp_path):
        _, found = file_and_report
        other = tiny_experiment.write(tmp_path, tiny, SEARCHED.replace("TRIALS", "3"))

        class EndsAfterTwo(SilentProgress):
            def stage(self, label, expected_s=0.0):
                if len(list((tmp_path / "runs").glob("weights/*/fit.json"))) == 2:
                    raise KeyboardInterrupt
                return super().stage(label, expected_s)

        with pytest.raises(KeyboardInterrupt):
            tiny_experiment.run(other, progress=EndsAfterTwo())
        first = folders(other)
        tried = next(f for f in tiny_experiment.run(other).facts if f.name == "found").training.sweep
        assert first.items() <= folders(other).items()
        known = next(f for f in found.facts if f.name == "found").training.sweep
        assert [t.params for t in tried] == [t.params for t in known]
        assert [t.validation for t in tried] == [t.validation for t in known]

    def test_counts_as_so_many_tries_of_its_side(self, file_and_report):
        said = " ".join(map(str, file_and_report[1].decision.reasons))
        assert "of 3 with" in said
