"""A fine-tune that gains and forgets too much: what is tried, on which half, and what is said, for several targets too."""

import json
from dataclasses import replace

import pytest
import rescue_worlds
from rescue_worlds import AS_IT_IS, COLLAPSED, Version, world
from typer.testing import CliRunner
from worlds import GOOD, Sizes

from harness import cli, store
from harness.errors import IncompatibleRuns, UserError
from harness.lifecycle import rescue
from harness.lifecycle.release import gate
from harness.lifecycle.rescue import exit_code
from harness.lifecycle.rescue_result import sentences
from harness.lifecycle.rescue_trials import estimate_trials
from harness.spec import GatePolicy

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("rule_cache")]


POLICY = GatePolicy()
FREE = ("scale=0.75", "scale=0.5", "scale=0.25")
TRAINED = ("kl=0.3", "kl=3", "replay=0.25", "replay=1")
SMALL = Sizes(general=160)  # eighty items a task and half: 1.6 points can be ruled out on four tasks
ONE_SCALE = ["rescue={steps: [scale], scales: [0.5]}"]


def names(found):
    return [t.name for t in found.tried]


def read_refusal(made, name, kind=UserError):
    with pytest.raises(kind) as error:
        rescue.prepare(made.session, made.loaded.selected, name)
    return str(error.value)


@pytest.fixture(scope="module")
def rescued_world(rule_cache, tmp_path_factory):
    versions = {"scale=0.75": Version(88, lost=30), "scale=0.5": Version(80)}
    made = world(tmp_path_factory.mktemp("mended"), versions, sizes=SMALL)
    return made, made.rescue()


@pytest.fixture(scope="module")
def hopeless_world(rule_cache, tmp_path_factory):
    versions = {
        "scale=0.75": Version(80, lost=40),
        "scale=0.5": Version(60, lost=30),
        "scale=0.25": Version(45, lost=20),
        **dict.fromkeys(TRAINED, Version(70, lost=15)),
    }
    made = world(tmp_path_factory.mktemp("hopeless"), versions, sizes=SMALL)
    return made, made.rescue()


def test_the_first_scale_that_passes_on_both_halves_is_rescued_and_found_again_without_an_answer(
    rescued_world, tmp_path
):
    made, found = rescued_world
    assert names(found) == ["lora+scale=0.75", "lora+scale=0.5"]
    assert found.rescued_trial == "lora+scale=0.5"
    assert [t.search.verdict.outcome for t in found.tried] == ["fail", "pass"]
    assert [t.confirm is not None for t in found.tried] == [False, True]
    assert found.tried[1].confirm.verdict.outcome == "pass"
    assert found.sentence.startswith("Rescued: lora+scale=0.5 (at scale 0.5, no training) passes on")
    assert exit_code(found, POLICY) == 0
    search, confirm = found.tried[1].search, found.tried[1].confirm
    assert search.n_items + confirm.n_items == search.n_all == 640
    assert search.sentence.startswith(f"on the search half ({search.n_items} of 640 items) PASS: ")
    assert confirm.sentence.startswith(f"on the other half ({confirm.n_items} of 640 items) PASS: ")

    rescue.write(found, tmp_path)
    (path,) = rescue.report_files(tmp_path, found.experiment)
    again = rescue.read(path)
    assert rescue.to_json(again) == rescue.to_json(found)
    assert [(scale, t.name) for scale, t in again.path] == [
        (0.5, "lora+scale=0.5"),
        (0.75, "lora+scale=0.75"),
        (1.0, "lora"),
    ]

    again = rescue_worlds.open_world(made.path, {})
    assert again.rescue() == found
    assert again.host.opened == []

    run_id = found.tried[1].facts.run_id
    assert store.get_run(made.session.store, run_id).recipe == found.tried[1].recipes["lora+scale=0.5"]
    (judged,) = gate(made.path, run_id)
    assert judged.verdict.outcome == "pass"


def test_the_recipe_that_is_printed_is_found_stored_when_it_is_added_to_the_file(rescued_world, tmp_path):
    made, found = rescued_world
    (line,) = [s for s in sentences(found) if "-rescued: " in s]
    path = made.path.with_name("with.yaml")
    path.write_text(made.path.read_text() + line + "\n")
    again = rescue_worlds.open_world(path, {"scale=0.5": Version(80)})
    facts = {f.name: f for f in again.report.facts}
    assert facts["lora-rescued"].verdict.outcome == "pass"
    digests = {r.candidate: r.weights_digest for r in store.list_runs(again.session.store)}
    assert digests["lora-rescued"] == digests["lora+scale=0.5"]


def test_a_trial_that_loses_on_the_other_half_alone_is_not_confirmed_and_nothing_else_is_tried(tmp_path):
    versions = {"scale=0.75": Version(88, lost=60, lost_in="confirm"), "scale=0.5": Version(80)}
    found = world(tmp_path, versions, sizes=SMALL).rescue()
    assert names(found) == ["lora+scale=0.75"]
    assert (found.tried[0].search.passes, found.tried[0].confirm.verdict.outcome) == (True, "fail")
    assert found.rescued_trial is None
    assert "lora+scale=0.75 passed on the search half, but on the other half" in found.sentence
    assert exit_code(found, POLICY) == 3


def test_where_nothing_passes_all_trials_are_tried_by_cost_and_the_front_is_said(hopeless_world):
    _, found = hopeless_world
    assert found.rescued_trial is None
    assert found.sentence.startswith("Nothing is rescued: none of 7 trials of lora passes on the search half")
    assert {t.search.verdict.outcome for t in found.tried} == {"fail"}
    assert all(t.confirm is None for t in found.tried)
    assert exit_code(found, POLICY) == 3
    # 0.5 and 0.25 gain less and lose more than what was trained anew; 0.75 and the run itself gain more.
    assert set(found.front) == {"lora", "lora+scale=0.75", *(f"lora+{mark}" for mark in TRAINED)} - {
        f"lora+{mark}" for mark in TRAINED[1:]
    }

    assert names(found) == [f"lora+{mark}" for mark in (*FREE, *TRAINED)]
    left = [reason.rpartition(": ")[0] for reason in found.left_out]
    assert left[:2] == ["earlier: nothing was measured along its training", "merge"]
    assert left[-2:] == ["rank 4", "the first 3 of 6 layers left as they are"]
    assert [said.partition(" ")[0] for said in left[2:-2]] == ["elastic", "squared", "learning"]


def test_a_trial_that_passes_but_gains_nothing_is_no_rescue(tmp_path):
    versions = {"scale=0.5": Version(35)}  # less than the 40 % of the best without training
    found = world(tmp_path, versions, sizes=SMALL, overrides=ONE_SCALE).rescue()
    (tried,) = found.tried
    assert (tried.search.verdict.outcome, tried.search.gains, tried.search.passes) == ("pass", False, False)
    assert tried.search.sentence.endswith("; the gain on the target is gone")
    assert (found.rescued_trial, exit_code(found, POLICY)) == (None, 3)


def test_too_few_items_end_as_undecided_with_their_own_code(tmp_path):
    versions = {"scale=0.5": Version(80)}
    found = world(tmp_path, versions, sizes=Sizes(general=50), overrides=ONE_SCALE).rescue()
    assert {t.search.verdict.outcome for t in found.tried} == {"inconclusive"}
    assert (found.rescued_trial, exit_code(found, POLICY)) == (None, 4)


def test_a_run_that_passes_gains_nothing_or_only_misses_its_target_is_refused(tmp_path):
    made = world(tmp_path / "passes", {AS_IT_IS: Version()}, sizes=SMALL)
    refusal = read_refusal(made, "lora")
    assert "found a run that the gate passes" in refusal
    assert "harness promote lora" in refusal
    assert rescue.prepare_from_report(made.session, made.report) is None
    made = rescue_worlds.open_world(made.path, {AS_IT_IS: Version()}, ["gate.target.min=0.99"])
    assert "what stops it is target: " in read_refusal(made, "lora")
    made = world(tmp_path / "gains nothing", {AS_IT_IS: Version(40, lost=50)}, sizes=Sizes(general=40))
    refusal = read_refusal(made, "lora")
    assert "found no gain that is shown" in refusal
    assert "harness promote lora" not in refusal


def test_what_trains_nothing_is_unknown_was_never_run_or_is_of_another_recipe_is_refused(rescued_world):
    made, _ = rescued_world
    assert "fine-tunes nothing" in read_refusal(made, "prompt")
    assert "did you mean 'lora'?" in read_refusal(made, "lore")

    (run,) = [r for r in store.list_runs(made.session.store) if r.candidate == "lora"]
    path, text = made.path.with_name("changed.yaml"), made.path.read_text()
    changed = text.replace("lora: {method: lora}", "lora: {method: lora, params: {r: 2}}")
    added = text + "  other: {method: lora, params: {r: 4}}\n"
    for name, written, said in (
        (run.run_id, changed, "a run of a recipe that the file does not have now"),
        ("other", added, "found no run of other as written now"),
    ):
        path.write_text(written)
        result = CliRunner().invoke(cli.app, ["rescue", name, "-c", str(path)])
        assert isinstance(result.exception, IncompatibleRuns)
        assert said in str(result.exception)


def test_the_command_prints_the_table_writes_its_files_and_exits_by_the_outcome(rescued_world):
    made, found = rescued_world
    result = CliRunner().invoke(cli.app, ["rescue", "lora", "-c", str(made.path)], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    first = next(line for line in result.stdout.splitlines() if line.startswith("lora+"))
    assert first.startswith("lora+scale=0.5")
    assert first.split()[-2:] == ["PASS", "PASS"]
    assert found.sentence in result.stdout
    written = {path.name for path in (made.path.parent / "reports").glob("*rescue*")}
    assert written == {f"world.rescue-lora{suffix}" for suffix in (".md", ".json", ".front.svg")}
    picture = (made.path.parent / "reports" / "world.rescue-lora.front.svg").read_text()
    assert all(name in picture for name in ("lora+scale=0.5 (recommended)", "lora+scale=0.75"))


def test_a_dry_run_says_what_would_be_tried_and_compare_what_that_takes_at_most(rescued_world):
    made, _ = rescued_world
    command = ["rescue", "lora", "-c", str(made.path), "--dry-run"]
    read = json.loads(CliRunner().invoke(cli.app, [*command, "--json"]).stdout)
    assert [t["name"] for t in read["trials"] if t["stored"]] == ["lora+scale=0.75", "lora+scale=0.5"]
    assert [t["step"] for t in read["trials"]] == ["scale"] * 3 + ["kl"] * 2 + ["replay"] * 2
    trained = {t["step"]: t["work"]["trained"] for t in read["trials"]}
    assert trained["scale"] == 0 < min(trained["kl"], trained["replay"])
    result = CliRunner().invoke(cli.app, ["compare", "-c", str(made.path), "--rescue", "--dry-run", "--json"])
    assert json.loads(result.stdout)["rescue, at most"]["trained"] > 0


def test_compare_rescues_the_best_fine_tune_that_forgets_too_much(rescued_world):
    made, found = rescued_world
    result = CliRunner().invoke(cli.app, ["compare", "-c", str(made.path), "--rescue", "--json"])
    assert result.exit_code == 0, result.output
    read = json.loads(result.stdout)
    assert (read["rescue"]["rescued"], read["rescue"]["sentence"]) == (found.rescued_trial, found.sentence)
    assert read["decision"]["candidate"] == "fixed"


SPLITS = {"train": range(300, 340), "validation": range(200, 300), "test": range(200)}
# The fine-tune has 90 % right on the first two. Of the last two only test items are there, so the prompt,
# which has 20 % right everywhere, is what a gain is measured against.
TARGETS = {"counter": tuple(SPLITS), "till": ("test",), "shelf": ("test",)}
FINE_TUNE = COLLAPSED._replace(more=(("shelf", 20),))


def declare_targets(folder):
    """Write the rows of further targets; returns what declares them in harness.yaml."""
    written = []
    for name, splits in TARGETS.items():
        for split in splits:
            asked = [
                {"id": f"{name}-{i}", "prompt": f"What is {name} behaviour {i} ?", "reference": GOOD}
                for i in SPLITS[split]
            ]
            (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
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
    """Make a fine-tune of which the strongest setting keeps the gain on the target alone, and the next one all."""
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

    for one, right in zip((rescue_result.original, *rescue_result.tried), (0.9, 0.2, 0.75), strict=True):
        scores = {score.task: score for score in one.facts.more_targets}
        assert set(scores) == set(TARGETS)
        assert scores["counter"].score.score == pytest.approx(right)
        assert scores["counter"].untrained == "fixed"
        assert scores["counter"].vs_untrained.delta == pytest.approx(right - 0.4)
        assert (scores["till"].untrained, scores["till"].vs_untrained) == (None, None)
        assert scores["till"].vs_prompt.delta == pytest.approx(scores["till"].score.score - 0.2)

    prepared = rescue.prepare(target_world.session, target_world.loaded.selected, "lora")
    alone = estimate_trials(replace(prepared.session, more_targets=()), prepared.schedule, 0)
    planned = estimate_trials(prepared.session, prepared.schedule, 0)
    assert all(one.work.read > other.work.read for one, other in zip(planned, alone, strict=True))


def test_a_gain_that_validation_promises_and_test_does_not_show_rescues_nothing(tmp_path, targets):
    """41 % right are one point over the best that trains nothing, too few to be shown on 200 items."""
    found = world_of_targets(tmp_path, targets, **{"75": Version(88, more=(("counter", 41),))}).rescue()
    (one,) = found.tried
    assert (one.search.passes, one.confirm.verdict.outcome) == (True, "pass")
    assert (one.confirm.gains, one.confirm.lost_on) == (True, ("counter",))
    assert found.rescued_trial is None
    assert found.sentence.startswith("Nothing is rescued: lora+scale=0.75 passed on the search half, but on")
    assert "the gain on counter is gone" in found.sentence
    assert exit_code(found, GatePolicy()) == 3
