"""A search: Optuna's proposals from earlier results, pruned at tracked points, and resumed after a stop."""

import json
from dataclasses import replace
from math import log10

import pytest
import tiny_experiment
from tiny_experiment import fact_of

from harness import config, store
from harness.errors import UserError
from harness.evaluation.candidates import resolve_candidates
from harness.experiment import report_stored
from harness.experiment.trials import proposals, searcher
from harness.models.hub import resolve
from harness.progress import SilentProgress
from harness.records import Trial
from harness.report.document import markdown
from harness.report.sections import experiment_document
from harness.store import list_unreferenced, run_references

pytestmark = pytest.mark.usefixtures("own_cache")

SPACE = {"learning_rate": [1e-4, 1e-1, "log"], "r": [2, 4]}
POINTS = 4
HALVING = "{successive_halving: {reduction_factor: 2}}"
PRUNED = """\
  prompt: {method: base}
  found:
    method: lora
    params: {num_train_epochs: 4, max_length: 200, per_device_train_batch_size: 4}
    search: {learning_rate: [1.0e-4, 0.3, log], r: [2, 4]}
    trials: 3
    track: {points: 4, items: 4}
    prune: {successive_halving: {reduction_factor: 2}}
"""


def write_experiment(folder, model, candidates=PRUNED):
    """Write the tiny experiment with a target whose score differs between trainings with no right answer."""
    path = tiny_experiment.write(folder, model, candidates)
    suite = folder / "suites" / "letters.yaml"
    text = suite.read_text().replace("[exact_match, macro_f1]", "[chrf]")
    suite.write_text(text.replace("    labels: [late, money]\n", ""))
    return path


def resolve_search(path, tiny, **changes):
    """Return the candidate `found` of an experiment with a changed recipe."""
    written = config.load(path).experiment
    recipe = written.candidates["found"].model_copy(update=changes)
    experiment = written.model_copy(update={"candidates": {"found": recipe}})
    return resolve_candidates(experiment, {written.base_model: resolve(str(tiny))})["found"]


def change_source(candidate, **changes):
    return replace(candidate, source=candidate.source.model_copy(update=changes))


@pytest.fixture(scope="module")
def candidate(tiny, tmp_path_factory):
    return resolve_search(
        write_experiment(tmp_path_factory.mktemp("one"), tiny), tiny, search=SPACE, trials=16
    )


def walk_search(candidate, score, *, sign=1):
    """Answer each proposal by `score(params, n)` at its n-th point until it is pruned; returns the trials."""
    trials = []
    for proposal in proposals(candidate, 0, sign, trials):
        points, pruned_at = [], None
        for n in range(1, POINTS + 1):
            points.append((n, score(proposal.params, n)))
            if proposal.should_prune(n, points[-1][1]) and n < POINTS:
                pruned_at = n
                break
        outcome = {"validation": points[-1][1], "points": tuple(points), "pruned_at": pruned_at}
        trials.append(Trial(params=proposal.params, **outcome))
    return trials


def score_by_rate(params, n):
    return n * params["learning_rate"]


PRUNERS = {
    "median": {}, "percentile": {"percentile": 50.0}, "hyperband": {},
    "successive_halving": {"reduction_factor": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", PRUNERS)
def test_each_pruner_ends_trials_early_and_the_search_trains_as_much_as_whole_trials_would(candidate, name):
    pruner = change_source(candidate, prune={name: PRUNERS[name]})
    trials = walk_search(pruner, score_by_rate)
    assert walk_search(pruner, score_by_rate) == trials
    pruned = [trial for trial in trials if trial.is_pruned]
    assert pruned
    assert len(trials) > 16
    spent = sum(len(trial.points) for trial in trials)
    assert 15 * POINTS < spent <= 16 * POINTS
    best = max(trials, key=lambda trial: trial.params["learning_rate"])
    assert not best.is_pruned


def test_where_lower_is_better_high_scores_are_pruned_and_the_pruner_is_named(candidate):
    trials = walk_search(candidate, score_by_rate, sign=-1)
    best = min(trials, key=lambda trial: trial.params["learning_rate"])
    assert not best.is_pruned
    assert any(trial.is_pruned for trial in trials)
    assert searcher(candidate.source).endswith(", pruned by its SuccessiveHalvingPruner")
    assert "pruned" not in searcher(change_source(candidate, prune={}).source)


# A search that is pruned


def list_trials(report):
    return fact_of(report, "found").training.sweep


@pytest.fixture(scope="module")
def file_and_report(tiny, own_cache, tmp_path_factory):
    path = write_experiment(tmp_path_factory.mktemp("pruned"), tiny, PRUNED)
    return path, tiny_experiment.run(path)


def folders(path):
    """Map the folders of weights to their files, each with its time of change."""
    return {
        f.name: sorted((str(p.relative_to(f)), p.stat().st_mtime_ns) for p in f.rglob("*") if p.is_file())
        for f in (path.parent / "runs" / "weights").iterdir()
    }


@pytest.mark.e2e
class TestAPrunedSearch:
    def test_ends_trials_at_points_shows_and_lists_them_and_chooses_a_whole_one(self, file_and_report):
        tried = list_trials(file_and_report[1])
        early = [trial for trial in tried if trial.is_pruned]
        assert early
        spent = sum(len(trial.points) for trial in tried)
        assert 2 * POINTS < spent <= 3 * POINTS
        assert all(trial.pruned_at == trial.points[-1][0] for trial in early)
        (chosen,) = (trial for trial in tried if trial.chosen)
        assert not chosen.is_pruned
        assert len(chosen.points) == POINTS
        assert chosen.validation == max(t.validation for t in tried if not t.is_pruned)

        for trial in early:
            folder = file_and_report[0].parent / "runs" / "weights" / trial.fit_key
            assert sorted(p.name for p in folder.iterdir()) == ["pruned.json", "tracked"]
            assert len(list((folder / "tracked").iterdir())) == len(trial.points)
            assert trial.loss[-1][0] == trial.pruned_at
            assert trial.wall_s > 0

        text = markdown(experiment_document(file_and_report[1]))
        assert "pruned by its SuccessiveHalvingPruner" in text
        assert f"pruned at step {early[0].pruned_at}" in text
        assert "With pruned ones they take as much training as " in text

        trials = store.list_trials(store.Store(file_and_report[0].parent / "runs"))
        states = {trial.fit_key: "pruned" if trial.is_pruned else "done" for trial in tried}
        assert {entry.trial.fit_key: entry.state for entry in trials} == states
        assert all(entry.run.training.loss for entry in trials)

    def test_is_found_after_what_nothing_refers_to_was_deleted(self, file_and_report):
        session = tiny_experiment.session(file_and_report[0])
        runs = store.list_runs(session.store)
        unreferenced = list_unreferenced(session.store, run_references(runs))
        store.remove(session.store.folder, [entry.path for entry in unreferenced])
        stored = report_stored(session, ["prompt", "found"])
        assert list_trials(stored) == list_trials(file_and_report[1])

    def test_a_trial_that_was_trained_in_parts_is_the_one_that_was_not(self, file_and_report, tiny, tmp_path):
        chosen = next(t for t in list_trials(file_and_report[1]) if t.chosen)
        words = ", ".join(f"{name}: {value}" for name, value in chosen.params.items())
        alone = f"""\
  found:
    method: lora
    params: {{num_train_epochs: 4, max_length: 200, per_device_train_batch_size: 4, {words}}}
    track: {{points: 4, items: 4}}
"""
        path = write_experiment(tmp_path, tiny, alone)
        tiny_experiment.run(path)
        digests = [
            json.loads((at.parent / "runs" / "weights" / chosen.fit_key / "fit.json").read_text())["digest"]
            for at in (path, file_and_report[0])
        ]
        assert digests[0] == digests[1]

    def test_that_was_ended_comes_by_the_same_trials(self, file_and_report, tiny, tmp_path):
        path = write_experiment(tmp_path, tiny, PRUNED)

        class EndsAt(SilentProgress):
            stages = 0

            def stage(self, label, expected_s=0.0):
                EndsAt.stages += 1
                if EndsAt.stages in (4, 9, 14):
                    raise KeyboardInterrupt
                return super().stage(label, expected_s)

        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                tiny_experiment.run(path, progress=EndsAt())
        tried, uncut = (
            [(t.params, t.points, t.pruned_at) for t in list_trials(report)]
            for report in (tiny_experiment.run(path), file_and_report[1])
        )
        assert tried == uncut
        assert set(folders(path)) == set(folders(file_and_report[0]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("    track: {points: 4, items: 4}\n", ""), "add search, and track"),
        ((HALVING, "best_first"), "best_first"),
        (("{reduction_factor: 2}", "{reduction: 2}"), "unexpected keyword argument 'reduction'"),
        ((HALVING, "{median: {}, hyperband: {}}"), "2 pruners"),
        (
            ("    prune:", "    subject_to: {forgetting: 0.1}\n    prune:"),
            "no general item outside the tests",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(tiny, tmp_path, changed, said):
    path = write_experiment(tmp_path, tiny, PRUNED.replace(*changed))
    with pytest.raises(UserError) as caught:
        tiny_experiment.session(path)
    assert said in str(caught.value)
    assert not (tmp_path / "runs" / "weights").exists()


SEARCHED_SPACE = {"learning_rate": [1e-4, 1e-1, "log"], "r": [2, 4, 8], "lora_dropout": [0.0, 0.2, "linear"]}
SEARCHED = """\
  prompt: {method: base}
  found:
    method: lora
    params: {num_train_epochs: 1, max_length: 200}
    search: {learning_rate: [1e-4, 1e-1, log], r: [2, 4]}
    trials: TRIALS
"""


@pytest.fixture(scope="module")
def searching(tiny, tmp_path_factory):
    path = tiny_experiment.write(tmp_path_factory.mktemp("one"), tiny, SEARCHED.replace("TRIALS", "12"))
    return resolve_search(path, tiny, search=SEARCHED_SPACE)


def walk_whole(searching, score, *, seed=0, sign=1):
    tried = []
    for point in proposals(searching, seed, sign, tried):
        validation = score(point.params)
        tried.append(Trial(params=point.params, validation=validation))
    return [trial.params for trial in tried]


def distance(point):
    return abs(log10(point["learning_rate"]) + 2) + (point["r"] != 4)


class TestProposals:
    def test_are_as_many_as_trials_within_the_space_and_whole_where_it_is(self, searching):
        points = walk_whole(searching, lambda point: 0.5)
        assert len(points) == 12
        for point in points:
            assert 1e-4 <= point["learning_rate"] <= 1e-1
            assert point["r"] in (2, 4, 8)
            assert 0 <= point["lora_dropout"] <= 0.2

        points = walk_whole(change_source(searching, search={"r": [2, 64, "log"]}), lambda point: 0.5)
        assert all(isinstance(point["r"], int) and 2 <= point["r"] <= 64 for point in points)

    def test_are_the_same_of_the_same_seed_and_findings_alone(self, searching):
        first = walk_whole(searching, lambda point: -distance(point))
        assert walk_whole(searching, lambda point: -distance(point)) == first
        assert walk_whole(searching, lambda point: -distance(point), seed=1) != first
        mirrored = walk_whole(searching, distance)
        assert mirrored[:5] == first[:5], "the first five are drawn at random"
        assert mirrored[5:] != first[5:]

    def test_of_more_trials_begin_as_those_of_fewer(self, searching):
        longer = walk_whole(change_source(searching, trials=60), lambda point: -distance(point))
        assert longer[:40] == walk_whole(change_source(searching, trials=40), lambda point: -distance(point))
        assert longer[:12] == walk_whole(searching, lambda point: -distance(point))


@pytest.fixture(scope="module")
def searched(tiny, own_cache, tmp_path_factory):
    path = tiny_experiment.write(tmp_path_factory.mktemp("search"), tiny, SEARCHED.replace("TRIALS", "3"))
    return path, tiny_experiment.run(path)


@pytest.mark.e2e
class TestASearch:
    def test_keeps_the_trial_that_is_best_on_validation_shows_every_one_and_counts_their_number(
        self, searched
    ):
        fact, tried = fact_of(searched[1], "found"), list_trials(searched[1])
        assert (fact.state, len(tried)) == ("done", 3)
        chosen = next(t for t in tried if t.chosen)
        assert chosen.validation == max(t.validation for t in tried)
        assert fact.training.searched_by.startswith("TPE of Optuna 5.")

        text = markdown(experiment_document(searched[1]))
        assert "Search: found" in text
        assert "3 trials on validation rows, proposed by TPE of Optuna" in text
        assert "was the best of 3 trials on validation" in text
        assert "and 3 with" in " ".join(map(str, searched[1].decision.reasons))

    def test_is_not_trained_again_goes_on_with_more_trials_and_shows_fewer_of_those_it_made(self, searched):
        path, _ = searched
        before = folders(path)
        more = tiny_experiment.run(path, "candidates.found.trials=5")
        after = folders(path)
        assert before.items() <= after.items()
        assert len(list_trials(more)) == 5
        tried = list_trials(tiny_experiment.run(path))
        assert folders(path) == after
        assert len(tried) == 3
        assert next(t for t in tried if t.chosen).validation == max(t.validation for t in tried)
        fewer = report_stored(tiny_experiment.session(path), ["prompt", "found"])
        assert len(list_trials(fewer)) == 3
