"""A sweep or search whose choice is subject to forgetting, measured on general items that no test asks."""

from collections import defaultdict
from dataclasses import replace

import pytest
import rescue_worlds
import tiny_experiment
import worlds
from rescue_worlds import BASE, Version, VersionHost
from worlds import Sizes

from harness import config, experiment
from harness.evaluation.candidates import resolve_candidates
from harness.experiment import Scope, prepare_session
from harness.experiment.trials import proposals
from harness.experiment.validation_scores import general_items
from harness.models.hub import resolve
from harness.progress import SilentProgress
from harness.records import Trial
from harness.report.document import markdown
from harness.report.sections import experiment_document
from harness.spec import SubjectTo

pytestmark = pytest.mark.usefixtures("module_cache")

SWEPT = """\
  swept: {method: lora, sweep: {learning_rate: [0.0001, 0.001, 0.01]}, subject_to: {forgetting: 0.1, items: 160}}
"""
TRIALS = {
    "0.0001": Version(target=60, lost=0),
    "0.001": Version(target=80, lost=5),
    "0.01": Version(target=95, lost=50),
}
LIMIT = 100


def open_world(folder, versions, *overrides):
    if not (folder / "harness.yaml").exists():
        path = worlds.write(folder, BASE, Sizes(general=140))
        path.write_text(path.read_text() + SWEPT)
        suite = folder / "suites" / "general.yaml"
        suite.write_text(
            suite.read_text().replace("max_new_tokens: 4}", f"max_new_tokens: 4, limit: {LIMIT}}}")
        )
    loaded = config.load(folder / "harness.yaml", overrides, ["prompt", "swept"])
    session = prepare_session(loaded, Scope(), SilentProgress())
    session.slot.host = VersionHost(versions, session.source, defaultdict(str))
    candidate = session.candidates["swept"]
    for point in candidate.points:
        rescue_worlds.lay_down(session, candidate.at(point), str(point["learning_rate"]))
    return session, loaded


def run(folder, versions, *overrides):
    session, loaded = open_world(folder, versions, *overrides)
    report = experiment.run_all(session, loaded)
    return session, report, next(f for f in report.facts if f.name == "swept").training.sweep


@pytest.fixture(scope="module")
def bound(module_cache, tmp_path_factory):
    return run(tmp_path_factory.mktemp("bound"), TRIALS)


def test_the_best_of_those_that_keep_the_bound_is_chosen_on_items_that_no_test_asks(bound):
    tried = bound[2]
    assert [t.chosen for t in tried] == [False, True, False]
    gentle, chosen, harsh = (t.forgetting for t in tried)
    assert gentle == 0
    assert 0.02 < chosen <= 0.1 < harsh

    session = bound[0]
    asked = general_items(session, 160)
    assert [len(m.items.test) for m in asked] == [40, 40, 40, 40]
    tests = {e.id for m in session.suites for e in m.items.test}
    assert len(tests) == 4 * LIMIT
    assert tests.isdisjoint(e.id for m in asked for e in m.items.test)
    assert [len(m.items.test) for m in general_items(session, 80)] == [20] * 4


@pytest.mark.e2e
def test_without_the_bound_the_best_on_validation_is_chosen(tmp_path):
    tried = run(tmp_path, TRIALS, "candidates.swept.subject_to=null")[2]
    assert [t.chosen for t in tried] == [False, False, True]
    assert {t.forgetting for t in tried} == {None}


@pytest.mark.e2e
def test_where_all_forget_more_the_one_that_forgot_least_is_chosen_and_that_is_said(tmp_path):
    versions = {name: of._replace(lost=of.lost + 20) for name, of in TRIALS.items()}
    _, report, tried = run(tmp_path, versions)
    assert [t.chosen for t in tried] == [True, False, False]
    assert "The one that forgot least was chosen" in markdown(experiment_document(report))


def test_a_task_of_which_few_items_are_left_does_not_count_like_the_others(tmp_path):
    open_world(tmp_path, TRIALS)
    file = tmp_path / "suites" / "general" / "chat.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[: LIMIT + 4]))
    again, _ = open_world(tmp_path, TRIALS)
    assert {m.task.name: len(m.items.test) for m in general_items(again, 160)} == {
        m.task.name: 40 for m in again.suites if m.task.name != "chat"
    }


def test_an_item_of_the_cluster_of_a_tested_one_is_left_out(bound, tmp_path):
    """One cluster holds an item that a test of another task asks, and one that none asks."""
    whole = general_items(bound[0], 160)
    asked, spare = bound[0].suites[1].items.test[0].id, whole[0].items.test[0].id
    open_world(tmp_path, TRIALS)
    for name, item in (("sums", asked), ("chat", spare)):
        file = tmp_path / "suites" / "general" / f"{name}.jsonl"
        file.write_text(file.read_text().replace(f'"id": "{item}"', f'"cluster": "shared", "id": "{item}"'))
    again, _ = open_world(tmp_path, TRIALS)
    left = general_items(again, 160)
    assert {e.id for e in whole[0].items.test} - {e.id for e in left[0].items.test} == {spare}
    assert [len(m.items.test) for m in left] == [39, 40, 40, 40]


def test_a_constraint_moves_the_search_to_what_keeps_it(tiny, tmp_path):
    """What scores best forgets too much, so with the constraint fewer of the last trials are of that kind."""
    written = "  found: {method: lora, search: {learning_rate: [1.0e-4, 1.0e-1, log], r: [2, 4]}}\n"
    found = config.load(tiny_experiment.write(tmp_path, tiny, written)).experiment
    candidate = resolve_candidates(found, {found.base_model: resolve(str(tiny))})["found"]
    source = candidate.source.model_copy(update={"trials": 40})
    bound = source.model_copy(update={"subject_to": SubjectTo(forgetting=0.1)})

    def find_last_rate(recipe):
        tried = []
        for proposal in proposals(replace(candidate, source=recipe), 0, 1, tried):
            rate = proposal.params["learning_rate"]
            known = (
                {"forgetting": 0.5 if rate > 1e-3 else 0.0, "most_forgetting": 0.1} if recipe is bound else {}
            )
            tried.append(Trial(params=proposal.params, validation=rate, **known))
        return sum(one.validation > 1e-3 for one in tried[-20:])

    assert find_last_rate(source) > 15
    assert find_last_rate(bound) < 10
