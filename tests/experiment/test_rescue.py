"""Rescue of a fine-tune that gains and forgets too much: trials, halves, texts, and several targets."""

import json
from dataclasses import replace

import pytest
import rescue_worlds
from rescue_worlds import AS_IT_IS, COLLAPSED, Version, world
from typer.testing import CliRunner
from worlds import GOOD, Sizes

from harness import cli, store
from harness.errors import IncompatibleRuns, UserError
from harness.experiment import Estimates, rescue, rescue_trials
from harness.experiment.rescue_trials import exit_code, sentences
from harness.lifecycle.release import gate
from harness.spec import GatePolicy

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("rule_cache")]


POLICY = GatePolicy()
FREE = ("scale=0.75", "scale=0.5", "scale=0.25")
TRAINED = ("kl=0.3", "kl=3", "replay=0.25", "replay=1")
SMALL = Sizes(general=160)  # eighty items a task and half: they can rule out 1.6 points on four tasks
ONE_SCALE = ["rescue={steps: [scale], scales: [0.5]}"]


def names(rescued):
    return [t.name for t in rescued.tried]


def read_refusal(tiny_world, name, kind=UserError):
    with pytest.raises(kind) as error:
        rescue.prepare(tiny_world.session, tiny_world.loaded.selected, name)
    return str(error.value)


@pytest.fixture(scope="module")
def rescued_world(rule_cache, tmp_path_factory):
    versions = {"scale=0.75": Version(88, lost=30), "scale=0.5": Version(80)}
    new_world = world(tmp_path_factory.mktemp("mended"), versions, sizes=SMALL)
    return new_world, new_world.rescue()


@pytest.fixture(scope="module")
def hopeless_world(rule_cache, tmp_path_factory):
    versions = {
        "scale=0.75": Version(80, lost=40),
        "scale=0.5": Version(60, lost=30),
        "scale=0.25": Version(45, lost=20),
        **dict.fromkeys(TRAINED, Version(70, lost=15)),
    }
    new_world = world(tmp_path_factory.mktemp("hopeless"), versions, sizes=SMALL)
    return new_world, new_world.rescue()


def test_the_first_scale_that_passes_on_both_halves_is_rescued_and_found_again_without_an_answer(
    rescued_world, tmp_path
):
    env, rescued = rescued_world
    assert names(rescued) == ["lora+scale=0.75", "lora+scale=0.5"]
    assert rescued.rescued_trial == "lora+scale=0.5"
    assert [t.search.verdict.outcome for t in rescued.tried] == ["fail", "pass"]
    assert [t.confirm is not None for t in rescued.tried] == [False, True]
    assert rescued.tried[1].confirm.verdict.outcome == "pass"
    assert rescued.sentence.startswith("Rescued: lora+scale=0.5 (at scale 0.5, no training) passes on")
    assert exit_code(rescued, POLICY) == 0
    search, confirm = rescued.tried[1].search, rescued.tried[1].confirm
    assert search.n_items + confirm.n_items == search.n_all == 640
    assert search.sentence.startswith(f"on the search half ({search.n_items} of 640 items) PASS: ")
    assert confirm.sentence.startswith(f"on the other half ({confirm.n_items} of 640 items) PASS: ")

    rescue_trials.write(rescued, tmp_path)
    (path,) = rescue_trials.report_files(tmp_path, rescued.experiment)
    again = rescue_trials.read(path)
    assert rescue_trials.to_json(again) == rescue_trials.to_json(rescued)
    assert [(scale, t.name) for scale, t in again.path] == [
        (0.5, "lora+scale=0.5"),
        (0.75, "lora+scale=0.75"),
        (1.0, "lora"),
    ]

    again = rescue_worlds.open_world(env.path, {})
    assert again.rescue() == rescued
    assert again.host.opened == []

    run_id = rescued.tried[1].facts.run_id
    assert store.get_run(env.session.store, run_id).recipe == rescued.tried[1].recipes["lora+scale=0.5"]
    (judged,) = gate(env.path, run_id)
    assert judged.verdict.outcome == "pass"


def test_the_recipe_that_is_printed_is_found_stored_when_it_is_added_to_the_file(rescued_world, tmp_path):
    env, rescued = rescued_world
    (line,) = [s for s in sentences(rescued) if "-rescued: " in s]
    path = env.path.with_name("with.yaml")
    path.write_text(env.path.read_text() + line + "\n")
    again = rescue_worlds.open_world(path, {"scale=0.5": Version(80)})
    facts = {f.name: f for f in again.report.facts}
    assert facts["lora-rescued"].verdict.outcome == "pass"
    digests = {r.candidate: r.weights_digest for r in store.list_runs(again.session.store)}
    assert digests["lora-rescued"] == digests["lora+scale=0.5"]


def test_a_trial_that_loses_on_the_other_half_alone_is_not_confirmed_and_nothing_else_is_tried(tmp_path):
    versions = {"scale=0.75": Version(88, lost=60, lost_in="confirm"), "scale=0.5": Version(80)}
    rescued = world(tmp_path, versions, sizes=SMALL).rescue()
    assert names(rescued) == ["lora+scale=0.75"]
    assert (rescued.tried[0].search.passes, rescued.tried[0].confirm.verdict.outcome) == (True, "fail")
    assert rescued.rescued_trial is None
    assert "lora+scale=0.75 passed on the search half, but on the other half" in rescued.sentence
    assert exit_code(rescued, POLICY) == 3


def test_where_nothing_passes_all_trials_are_tried_by_cost_and_the_front_is_said(hopeless_world):
    _, res = hopeless_world
    assert res.rescued_trial is None
    assert res.sentence.startswith("Nothing is rescued: none of 7 trials of lora passes on the search half")
    assert {t.search.verdict.outcome for t in res.tried} == {"fail"}
    assert all(t.confirm is None for t in res.tried)
    assert exit_code(res, POLICY) == 3
    # 0.5 and 0.25 gain less and lose more than the retrained ones; 0.75 and the run itself gain more.
    assert set(res.front) == {"lora", "lora+scale=0.75", *(f"lora+{mark}" for mark in TRAINED)} - {
        f"lora+{mark}" for mark in TRAINED[1:]
    }

    assert names(res) == [f"lora+{mark}" for mark in (*FREE, *TRAINED)]
    skipped = [reason.rpartition(": ")[0] for reason in res.left_out]
    assert skipped[:2] == ["earlier: nothing was measured along its training", "merge"]
    assert skipped[-2:] == ["rank 4", "the first 3 of 6 layers left as they are"]
    assert [text.partition(" ")[0] for text in skipped[2:-2]] == ["elastic", "squared", "learning"]


def test_a_trial_that_passes_but_gains_nothing_is_no_rescue(tmp_path):
    versions = {"scale=0.5": Version(35)}  # less than the 40 % of the best without training
    rescued = world(tmp_path, versions, sizes=SMALL, overrides=ONE_SCALE).rescue()
    (tried,) = rescued.tried
    assert (tried.search.verdict.outcome, tried.search.gains, tried.search.passes) == ("pass", False, False)
    assert tried.search.sentence.endswith("; the gain on the target is gone")
    assert (rescued.rescued_trial, exit_code(rescued, POLICY)) == (None, 3)


def test_too_few_items_end_as_undecided_with_their_own_code(tmp_path):
    versions = {"scale=0.5": Version(80)}
    rescued = world(tmp_path, versions, sizes=Sizes(general=50), overrides=ONE_SCALE).rescue()
    assert {t.search.verdict.outcome for t in rescued.tried} == {"inconclusive"}
    assert (rescued.rescued_trial, exit_code(rescued, POLICY)) == (None, 4)


def test_a_run_that_passes_gains_nothing_or_only_misses_its_target_is_refused(tmp_path):
    env = world(tmp_path / "passes", {AS_IT_IS: Version()}, sizes=SMALL)
    refusal = read_refusal(env, "lora")
    assert "found a run that the gate passes" in refusal
    assert "harness promote lora" in refusal
    assert rescue.prepare_from_report(env.session, env.report) is None
    env = rescue_worlds.open_world(env.path, {AS_IT_IS: Version()}, ["gate.target.min=0.99"])
    assert "what stops it is target: " in read_refusal(env, "lora")
    env = world(tmp_path / "gains nothing", {AS_IT_IS: Version(40, lost=50)}, sizes=Sizes(general=40))
    refusal = read_refusal(env, "lora")
    assert "found no gain that is shown" in refusal
    assert "harness promote lora" not in refusal


def test_what_trains_nothing_is_unknown_was_never_run_or_is_of_another_recipe_is_refused(rescued_world):
    env, _ = rescued_world
    assert "fine-tunes nothing" in read_refusal(env, "prompt")
    assert "did you mean 'lora'?" in read_refusal(env, "lore")

    (run,) = [r for r in store.list_runs(env.session.store) if r.candidate == "lora"]
    path, text = env.path.with_name("changed.yaml"), env.path.read_text()
    changed = text.replace("lora: {method: lora}", "lora: {method: lora, params: {r: 2}}")
    added = text + "  other: {method: lora, params: {r: 4}}\n"
    for name, written, problem in (
        (run.run_id, changed, "a run of a recipe that the file does not have now"),
        ("other", added, "found no run of other as written now"),
    ):
        path.write_text(written)
        result = CliRunner().invoke(cli.app, ["rescue", name, "-c", str(path)])
        assert isinstance(result.exception, IncompatibleRuns)
        assert problem in str(result.exception)


def test_the_command_prints_the_table_writes_its_files_and_exits_by_the_outcome(rescued_world):
    env, rescued = rescued_world
    result = CliRunner().invoke(cli.app, ["rescue", "lora", "-c", str(env.path)], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    first = next(line for line in result.stdout.splitlines() if line.startswith("lora+"))
    assert first.startswith("lora+scale=0.5")
    assert first.split()[-2:] == ["PASS", "PASS"]
    assert rescued.sentence in result.stdout
    written = {path.name for path in (env.path.parent / "reports").glob("*rescue*")}
    assert written == {f"world.rescue-lora{suffix}" for suffix in (".md", ".json", ".front.svg")}
    picture = (env.path.parent / "reports" / "world.rescue-lora.front.svg").read_text()
    assert all(name in picture for name in ("lora+scale=0.5 (recommended)", "lora+scale=0.75"))


def test_a_dry_run_says_what_would_be_tried_and_compare_what_that_takes_at_most(rescued_world):
    env, _ = rescued_world
    command = ["rescue", "lora", "-c", str(env.path), "--dry-run"]
    plan = json.loads(CliRunner().invoke(cli.app, [*command, "--json"]).stdout)
    assert [t["name"] for t in plan["trials"] if t["stored"]] == ["lora+scale=0.75", "lora+scale=0.5"]
    assert [t["step"] for t in plan["trials"]] == ["scale"] * 3 + ["kl"] * 2 + ["replay"] * 2
    trained = {t["step"]: t["work"]["trained"] for t in plan["trials"]}
    assert trained["scale"] == 0 < min(trained["kl"], trained["replay"])
    result = CliRunner().invoke(cli.app, ["compare", "-c", str(env.path), "--rescue", "--dry-run", "--json"])
    assert json.loads(result.stdout)["rescue, at most"]["trained"] > 0


def test_compare_rescues_the_best_fine_tune_that_forgets_too_much(rescued_world):
    env, rescued = rescued_world
    result = CliRunner().invoke(cli.app, ["compare", "-c", str(env.path), "--rescue", "--json"])
    assert result.exit_code == 0, result.output
    doc = json.loads(result.stdout)
    assert (doc["rescue"]["rescued"], doc["rescue"]["sentence"]) == (rescued.rescued_trial, rescued.sentence)
    assert doc["decision"]["candidate"] == "fixed"


SPLITS = {"train": range(300, 340), "validation": range(200, 300), "test": range(200)}
# The fine-tune has 90 % right on the first two. The last two have test items only, so a gain is measured
# against the prompt, which has 20 % right everywhere.
TARGETS = {"counter": tuple(SPLITS), "till": ("test",), "shelf": ("test",)}
FINE_TUNE = COLLAPSED._replace(more=(("shelf", 20),))


def declare_targets(folder):
    """Write the rows of further targets; returns their declaration in harness.yaml."""
    written = []
    for name, splits in TARGETS.items():
        for split in splits:
            items = [
                {"id": f"{name}-{i}", "prompt": f"What is {name} behaviour {i} ?", "reference": GOOD}
                for i in SPLITS[split]
            ]
            (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
        data = ", ".join(f"{split}: {folder}/{name}-{split}.jsonl" for split in splits)
        written.append(f"  - {{name: {name}, data: {{{data}}}, max_new_tokens: 4}}\n")
    return f"more_targets:\n{''.join(written)}"


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return declare_targets(tmp_path_factory.mktemp("targets"))


def world_of_targets(folder, targets, **scales):
    versions = {f"scale=0.{digits}": version for digits, version in scales.items()}
    return rescue_worlds.world(folder, {AS_IT_IS: FINE_TUNE, **versions}, sizes=SMALL, extra=targets)


@pytest.fixture(scope="module")
def target_world(rule_cache, targets, tmp_path_factory):
    """Make a fine-tune whose strongest setting keeps the gain on the target alone, the next all gains."""
    scales = {
        "75": Version(88, more=(("counter", 20),)),
        "5": Version(80, more=(("counter", 75), ("shelf", 10))),
    }
    return world_of_targets(tmp_path_factory.mktemp("kept"), targets, **scales)


@pytest.fixture(scope="module")
def rescue_result(target_world):
    return target_world.rescue()


def test_a_trial_on_several_targets_is_scored_planned_and_no_rescue_where_it_gives_one_up(
    rescue_result, target_world
):
    first, second = rescue_result.tried
    assert (first.search.verdict.outcome, first.search.gains, first.search.passes) == ("pass", True, False)
    assert first.search.lost_on == ("counter",)
    assert first.search.sentence.endswith("; the gain on counter is gone")
    assert rescue_result.rescued_trial == second.name == "lora+scale=0.5"
    assert (second.search.lost_on, second.confirm.lost_on) == ((), ())

    for trial, right in zip((rescue_result.original, *rescue_result.tried), (0.9, 0.2, 0.75), strict=True):
        scores = {score.task: score for score in trial.facts.more_targets}
        assert set(scores) == set(TARGETS)
        assert scores["counter"].score.score == pytest.approx(right)
        assert scores["counter"].untrained == "fixed"
        assert scores["counter"].vs_untrained.delta == pytest.approx(right - 0.4)
        assert (scores["till"].untrained, scores["till"].vs_untrained) == (None, None)
        assert scores["till"].vs_prompt.delta == pytest.approx(scores["till"].score.score - 0.2)

    prepared = rescue.prepare(target_world.session, target_world.loaded.selected, "lora")
    alone = Estimates(replace(prepared.session, more_targets=())).trials(prepared.schedule, 0)
    planned = Estimates(prepared.session).trials(prepared.schedule, 0)
    assert all(trial.work.read > single.work.read for trial, single in zip(planned, alone, strict=True))


def test_a_gain_that_validation_promises_and_test_does_not_show_rescues_nothing(tmp_path, targets):
    """41 % right are one point over the best without training, too few to be shown on 200 items."""
    result = world_of_targets(tmp_path, targets, **{"75": Version(88, more=(("counter", 41),))}).rescue()
    (trial,) = result.tried
    assert (trial.search.passes, trial.confirm.verdict.outcome) == (True, "pass")
    assert (trial.confirm.gains, trial.confirm.lost_on) == (True, ("counter",))
    assert result.rescued_trial is None
    assert result.sentence.startswith("Nothing is rescued: lora+scale=0.75 passed on the search half, but on")
    assert "the gain on counter is gone" in result.sentence
    assert exit_code(result, GatePolicy()) == 3
