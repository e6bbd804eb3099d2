"""Trials of each recipe, halves of the items, and choices constrained by forgetting."""

from collections import defaultdict
from dataclasses import replace

import pytest
import rescue_worlds
import tiny_experiment
import worlds
from hypothesis import given
from hypothesis import strategies as st
from rescue_worlds import BASE, Version, VersionHost
from worlds import Sizes

from harness import config, experiment, plugins
from harness.analysis.admission import Measurement, cluster_name, cut_to_half, split
from harness.evaluation.candidates import resolve_candidates
from harness.experiment import Scope, prepare_session
from harness.experiment.rescue_trials import schedule_trials
from harness.experiment.trial_search import rank_trial
from harness.experiment.trials import general_items, proposals
from harness.models.hub import resolve
from harness.plugins import RescueSituation
from harness.progress import SilentProgress
from harness.records import SampleResult, TrackedPoint, Trial
from harness.spec import Recipe, RescuePolicy, SubjectTo, Task, TaskData

pytestmark = pytest.mark.usefixtures("rule_cache")

ALL = RescuePolicy(max_trained=9)
LORA = Recipe(method="lora")
POINTS = tuple(
    TrackedPoint(step=step, target=target, capability=capability)
    for step, target, capability in ((10, 0.5, 0.0), (20, 0.7, -0.015), (30, 0.6, -0.02), (40, 0.9, -0.1))
)  # the third is not on the front


def schedule(recipe, policy=ALL, n_layers=30, **fields):
    return schedule_trials("x", recipe, recipe, RescueSituation(policy, recipe.params, n_layers, **fields))


def marks(recipe, policy=ALL, n_layers=30):
    return [t.name.partition("+")[2] for t in schedule(recipe, policy, n_layers).trials]


def list_left_out(recipe, n_layers=30):
    return schedule(recipe, ALL, n_layers).left_out


def find_trial(recipe, mark):
    trials = schedule(recipe).trials
    return next(t.source for t in trials if t.name == f"x+{mark}")


def test_rungs_come_in_order_of_cost_and_what_trains_nothing_first():
    expected = (
        "scale=0.75 scale=0.5 scale=0.25 kl=0.3 kl=3 replay=0.25 replay=1 ewc=30 l2_sp=0.01 lr=0.0001 r=4"
    )
    assert marks(LORA) == [*expected.split(), "half"]
    trained = [t.trained for t in schedule(LORA, others={"y": {}}, tracked=POINTS).trials]
    assert trained == sorted(trained)
    policy = RescuePolicy(steps=("replay", "scale"), scales=(0.3,), shares=(0.2,))
    assert marks(LORA, policy) == ["replay=0.2", "scale=0.3"]


def test_an_adapter_is_merged_with_those_of_its_kind_that_are_there():
    plan = schedule(LORA, others={"y": {"r": 4}, "dora": {"use_dora": True}})
    (merged,) = [t for t in plan.trials if t.step == "merge"]
    assert (merged.name, merged.source.method, merged.source.merges) == ("x+merged", "merged", ("x", "y"))
    assert merged.says == "merged with y in equal shares, no training"
    assert "merge: there is no other adapter on its base to merge it with" in list_left_out(LORA)


@pytest.mark.parametrize(
    ("known", "step"),
    [
        ({"margin": 0.02}, 20),  # the best on the target within the margin
        ({"margin": 0.2}, 40),
        ({"margin": 0.02, "sign": -1}, 10),  # lower is better
        ({"margin": 0.02, "tracked": POINTS[2:]}, 30),  # exactly at the margin
        ({"margin": 0.01, "tracked": POINTS[2:]}, 30),  # none within the margin: the one that keeps most
    ],
)
def test_the_first_rung_is_the_point_of_the_training_that_gains_most_within_the_margin(known, step):
    (first, *_) = schedule(LORA, **{"tracked": POINTS, **known}).trials
    assert (first.name, first.trained) == (f"x+step={step}", False)
    source = (first.source.method, first.source.init_from, first.source.params)
    assert source == ("checkpoint", "x", {"step": step})


def test_what_a_kind_of_weights_does_not_take_is_left_out():
    marked = marks(Recipe(method="dpo", init_from="lora"))
    assert marked[3:] == ["kl=0.3", "kl=3", "ewc=30", "l2_sp=0.01", "lr=5e-07"]
    assert "replay: the training of dpo does not take it" in list_left_out(Recipe(method="dpo"))
    scales = ["scale=0.75", "scale=0.5", "scale=0.25"]
    assert marks(Recipe(method="adapter", path="./theirs")) == scales
    assert "half: the number of layers is not known" in list_left_out(LORA, None)
    whole = Recipe(method="checkpoint", params={"step": 10}, init_from="full")
    tried = {trial.recipe.method for trial in schedule(whole, makes="model").trials}
    assert "interpolated" in tried
    assert "scaled" not in tried


def test_a_penalty_or_share_is_tried_only_where_it_is_stronger_than_that_of_the_recipe():
    held = Recipe(method="lora", regularize={"kl": {"strength": 4.0}, "ewc": {"strength": 1.0, "rows": 8}})
    assert "kl: its recipe has kl of the strength 4 already" in list_left_out(held)
    assert find_trial(held, "ewc=30").regularize == {**held.regularize, "ewc": {"strength": 30.0, "rows": 8}}
    held = Recipe(method="lora", regularize={"replay": {"share": 0.5, "data": "general.jsonl"}})
    assert [mark for mark in marks(held) if "replay" in mark] == ["replay=1"]
    assert find_trial(held, "replay=1").regularize == {"replay": {"share": 1.0, "data": "general.jsonl"}}
    assert "replay: its recipe mixes in 100 % already" in list_left_out(Recipe(method="lora", replay=1.0))
    dora = Recipe(method="lora", params={"use_dora": True})
    assert not {"l2_sp=0.01", "ewc=30"} & set(marks(dora))
    assert [reason for reason in list_left_out(dora) if reason.startswith("ewc: not with use_dora")]


def test_every_step_that_a_plugin_declares_is_tried_by_default_what_trains_nothing_first():
    without_training = ("earlier", "scale", "merge")
    trained = ("kl", "replay", "ewc", "l2_sp", "learning_rate", "rank", "half")
    assert RescuePolicy().steps is None
    assert plugins.rescue_steps() == (*without_training, *trained)
    regularizers = (plugins.load("regularizers", name) for name in plugins.names("regularizers"))
    declared = [getattr(plugin, "RESCUE", None) for plugin in regularizers]
    declared += [plugins.method(name).rescue for name in plugins.names("methods")]
    assert {step.name for step in declared if step} <= set(plugins.rescue_steps())


def test_no_more_trainings_than_allowed_are_tried_and_the_others_are_named():
    plan = schedule(LORA, RescuePolicy(max_trained=1))
    assert [t.trained for t in plan.trials] == [False, False, False, True]
    over = [reason for reason in plan.left_out if "rescue.max_trained is 1" in reason]
    assert len(over) == 8
    assert len(plan.left_out) == 10  # nothing was tracked, and there is no other adapter to merge with


def rows(task, clusters):
    pairs = enumerate(clusters)
    return [SampleResult(task, "test", f"{task}-{i}", i, "ok", "", "", (), {}, cluster=c) for i, c in pairs]


TASKS = st.dictionaries(
    st.sampled_from(["chat", "sums", "facts"]),
    st.lists(st.sampled_from([f"c{i}" for i in range(12)] + [""]), min_size=1, max_size=40),
    min_size=1,
)


@given(TASKS, st.integers(0, 5))
def test_halves_never_share_a_cluster_and_hold_every_item_once(tasks, seed):
    row_sets = {task: rows(task, clusters) for task, clusters in tasks.items()}
    halved = split(row_sets, seed)
    parts = {h: [r for rs in row_sets.values() for r in halved.rows(rs, h)] for h in ("search", "confirm")}
    assert not set(map(cluster_name, parts["search"])) & set(map(cluster_name, parts["confirm"]))
    assert sum(map(len, parts.values())) == sum(map(len, row_sets.values()))


def test_pinned_items_are_in_both_halves_and_a_task_without_two_clusters_in_a_half_is_in_none():
    pinned, alone = rows("pinned", ["a", "b"]), rows("alone", ["c", "c"])
    task = Task(name="any", data=TaskData())
    measured = [
        Measurement(task, "regression", "", {}, pinned, pinned),
        Measurement(task, "capability", "", {}, alone, alone),
    ]
    halved = split({"pinned": pinned, "alone": alone}, 0)
    parts = [cut_to_half(measured, halved, half) for half in ("search", "confirm")]
    assert all(cut[0].new == pinned for cut in parts)
    assert list(map(len, parts)) == [1, 1]


def test_items_of_one_document_are_in_one_half_whatever_their_ids_in_each_task():
    tasks = {name: rows(name, [""] * 40) for name in ("a", "b", "c")}
    tasks = {
        name: [replace(row, prompt_digest=f"document-{row.position}") for row in items]
        for name, items in tasks.items()
    }
    cut = split(tasks, 0)
    sides = {name: {r.prompt_digest for r in cut.rows(items, "search")} for name, items in tasks.items()}
    assert sides["a"] == sides["b"] == sides["c"]
    assert len(sides["a"]) == 20


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
        path = worlds.write(folder, BASE, Sizes(general=140), worlds.LEAN)
        path.write_text(path.read_text() + SWEPT)
        suite = folder / "suites" / "general.yaml"
        limited = suite.read_text().replace("max_new_tokens: 4}", f"max_new_tokens: 4, limit: {LIMIT}}}")
        suite.write_text(limited)
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
def bound(rule_cache, tmp_path_factory):
    return run(tmp_path_factory.mktemp("bound"), TRIALS)


def test_the_best_of_those_that_keep_the_bound_is_chosen_on_items_that_no_test_asks(bound):
    tried = bound[2]
    assert [t.chosen for t in tried] == [False, True, False]
    gentle, chosen, harsh = (t.forgetting for t in tried)
    assert gentle == 0
    assert 0.02 < chosen <= 0.1 < harsh

    session = bound[0]
    measured = general_items(session.suites, session.first_seed, 160)
    assert [len(m.items.test) for m in measured] == [40, 40, 40, 40]
    tests = {e.id for m in session.suites for e in m.items.test}
    assert len(tests) == 4 * LIMIT
    assert tests.isdisjoint(e.id for m in measured for e in m.items.test)
    assert [len(m.items.test) for m in general_items(session.suites, session.first_seed, 80)] == [20] * 4


def test_without_the_bound_the_best_on_validation_is_chosen_and_where_all_pass_it_who_forgot_least(bound):
    def choose(**changes):
        trials = [replace(trial, **{"chosen": False} | changes) for trial in bound[2]]
        return max(trials, key=lambda trial: rank_trial(trial, 1)).params["learning_rate"]

    assert [choose(), choose(most_forgetting=None), choose(most_forgetting=-0.1)] == [0.001, 0.01, 0.0001]


def test_a_constraint_moves_the_search_to_what_keeps_it(tiny, tmp_path):
    """The best score forgets too much, so with the constraint fewer of the last trials forget."""
    written = "  found: {method: lora, search: {learning_rate: [1.0e-4, 1.0e-1, log], r: [2, 4]}}\n"
    loaded = config.load(tiny_experiment.write(tmp_path, tiny, written)).experiment
    candidate = resolve_candidates(loaded, {loaded.base_model: resolve(str(tiny))})["found"]
    source = candidate.source.model_copy(update={"trials": 40})
    bound = source.model_copy(update={"subject_to": SubjectTo(forgetting=0.1)})

    def find_last_rate(recipe):
        tried = []
        for proposal in proposals(replace(candidate, source=recipe), 0, 1, tried):
            rate = proposal.params["learning_rate"]
            forgot = {"forgetting": 0.5 if rate > 1e-3 else 0.0, "most_forgetting": 0.1}
            outcome = forgot if recipe is bound else {}
            tried.append(Trial(params=proposal.params, validation=rate, **outcome))
        return sum(trial.validation > 1e-3 for trial in tried[-20:])

    assert find_last_rate(source) > 15
    assert find_last_rate(bound) < 10
