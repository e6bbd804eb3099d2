"""The main job on a tiny model: same items for all, nothing twice, one failure stops nobody; the control arm."""

import json
import shutil

import pytest
import tiny_experiment
import tiny_model
from scipy import stats as scipy_stats
from tiny_experiment import fact_of, runs_of

from harness import config, experiment, report, store
from harness.analysis.gate_rules_on_answers import ControlFacts, control_rule, has_drifted
from harness.cli.compare import exit_code
from harness.errors import UserError
from harness.evaluation.control_arm import measure_control
from harness.experiment import Scope, prepare_session, report_stored
from harness.experiment.stored_rows import StoredRows
from harness.lifecycle import release
from harness.models.hf import ModelHost
from harness.progress import SilentProgress
from harness.records import Noise, Origin, TaskNoise
from harness.spec import GatePolicy
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")

UNLABELLED = ("target.labels=[]", "target.metrics=[exact_match]")
NAMES = ("prompt", "shots", "ranked", "bag", "lora", "hybrid")


def files(folder):
    """Map the files that hold results to size and time of change."""
    kept = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in kept}


def test_what_is_trained_is_judged_and_the_classifier_is_not(finished_run):
    assert {(f.name, f.state) for f in finished_run[1].facts} == {(name, "done") for name in NAMES}
    outcome = {f.name: f.verdict and f.verdict.outcome for f in finished_run[1].facts}
    assert outcome["prompt"] == outcome["shots"] == outcome["ranked"] == "pass"
    assert outcome["lora"] in ("pass", "fail", "inconclusive")
    assert outcome["bag"] is None
    verdict = fact_of(finished_run[1], "prompt").verdict
    assert (verdict.lost, verdict.gained) == (0, 0)
    assert finished_run[1].trivial == ("always answering “late”", 0.5)


def test_all_candidates_answer_the_same_items_and_those_of_the_same_weights_share_them(finished_run):
    at, runs = Store(finished_run[0] / "runs"), runs_of(finished_run[0] / "harness.yaml")
    asked: dict[str, set] = {}
    for run in runs.values():
        for task, rows_digest in run.rows.items():
            asked.setdefault(task, set()).add(tuple(r.example_id for r in store.read_rows(at, rows_digest)))
    assert {task: len(orders) for task, orders in asked.items()} == dict.fromkeys(asked, 1)
    assert len(next(iter(asked["letters/test"]))) == 12
    assert set(asked) == {"letters/test", "letters/validation", "sums/test", "facts/test", "prose/test"}

    shared = [{k: v for k, v in runs[name].rows.items() if "letters" not in k} for name in NAMES[:3]]
    assert shared[0] == shared[1] == shared[2]
    assert len(shared[0]) == 3
    for task in ("sums/test", "facts/test", "prose/test"):
        assert runs["hybrid"].rows[task] == runs["lora"].rows[task] != runs["prompt"].rows[task]
    assert runs["hybrid"].rows["letters/test"] != runs["lora"].rows["letters/test"]

    rows = store.read_rows(at, runs["ranked"].rows["letters/test"])
    assert {row.text for row in rows} <= {"late", "money"}
    assert {row.status for row in rows} == {"ok"}


def test_a_second_compare_computes_nothing_and_says_the_same_as_the_stored_report(finished_run, copy):
    before = files(copy.parent / "runs")
    again = tiny_experiment.run(copy)
    assert files(copy.parent / "runs") == before
    first, *others = (report.to_json(r) for r in (finished_run[1], again, report_experiment(copy)))
    for other in others:
        assert {k for k in first if first[k] != other[k]} <= {"header"}


def test_a_changed_recipe_computes_only_itself(copy):
    before = files(copy.parent / "runs" / "rows") | files(copy.parent / "runs" / "weights")
    tiny_experiment.run(copy, "candidates.shots.prompting.few_shot.shots=1")
    after = files(copy.parent / "runs" / "rows") | files(copy.parent / "runs" / "weights")
    assert {name: after[name] for name in before} == before
    new = {name.split("/")[0] for name in set(after) - set(before)}
    assert new == {runs_of(copy)["shots"].rows[f"letters/{split}"] for split in ("validation", "test")}


@pytest.mark.e2e
def test_a_candidate_that_fails_is_reported_with_its_knob_leaves_no_weights_and_may_succeed_next(
    tiny, tmp_path
):
    candidates = "  prompt: {method: base}\n  bag: {method: classifier}\n  twice: {weights_of: bag}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    found = tiny_experiment.run(path, *UNLABELLED)
    assert {f.name: f.state for f in found.facts} == {"prompt": "done", "bag": "failed", "twice": "failed"}
    assert "no closed label set" in fact_of(found, "bag").error
    assert "labels" in fact_of(found, "bag").error
    assert runs_of(path)["bag"].state == "failed"
    assert list((tmp_path / "runs").glob("weights/*")) == []
    assert fact_of(tiny_experiment.run(path, candidates=("bag",)), "bag").state == "done"


def report_experiment(path, *overrides, candidates=()):
    loaded = config.load(path, overrides, candidates)
    return report_stored(prepare_session(loaded, Scope(), SilentProgress()), loaded.selected)


def refusal(path, *overrides, **options):
    with pytest.raises(UserError) as caught:
        tiny_experiment.run(path, *overrides, **options)
    return caught.value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("target.labels=[late, weather]", "test.jsonl:7"),
        ("base_model=smolm2-135", "did you mean 'smollm2-135m'?"),
        ("gate.critical=[fact]", "did you mean 'facts'?"),
    ],
)
def test_what_does_not_fit_the_rows_models_or_tasks_is_refused(tiny, tmp_path, override, said):
    assert said in str(refusal(tiny_experiment.write(tmp_path, tiny), override))


def test_bad_rows_of_all_tasks_and_trained_test_items_are_refused_at_once(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny)
    for name in ("facts", "sums"):
        (tmp_path / "suites" / "general" / f"{name}.jsonl").write_text("{\n")
    error = refusal(path)
    expected = {"facts.jsonl:1", "sums.jsonl:1"}
    assert {problem.where.rpartition("/")[2] for problem in error.problems} == expected
    assert not (tmp_path / "runs").exists()

    path = tiny_experiment.write(tmp_path, tiny)
    train = tmp_path / "suites" / "letters" / "train.jsonl"
    leaked = {"id": "leak", "prompt": "What follows the number 3?", "reference": "late"}
    tiny_experiment.rows(train, [*tiny_experiment.letters(slice(0, 5)), leaked])
    assert "the question of facts item fact-3 too" in str(refusal(path))


@pytest.mark.e2e
def test_a_grid_over_seeds_is_compared_with_its_first_member(tiny, tmp_path):
    lora = "{method: lora, params: {r: [1, 2], max_steps: 1, learning_rate: 0.01, max_length: 200}}"
    candidates = f"  prompt: {{method: base}}\n  lora: {lora}\n"
    found = tiny_experiment.run(
        tiny_experiment.write(tmp_path, tiny, candidates, extra="seeds: [0, 1]\n"), "suites=[]"
    )
    (ablation,) = found.ablations
    assert [(f.candidate, f.n_seeds) for f in ablation.factors] == [("lora[r=1]", 2), ("lora[r=2]", 2)]
    assert ablation.factors[1].p_adjusted == ablation.factors[1].p
    assert [len(s.scores) for s in found.seeds] == [2, 2]
    assert all(s.score is not None for s in found.seeds)


CANDIDATES = "  prompt: {method: base}\n  shots: {prompting: {few_shot: {select: knn, shots: 2}}}\n"


@pytest.fixture(scope="module")
def begun_folder(tmp_path_factory, own_cache):
    """Ask the base and one candidate, of a model whose template writes one BOS."""
    folder = tmp_path_factory.mktemp("begun")
    model = tiny_model.build(tmp_path_factory.mktemp("started"), template=tiny_model.STARTED)
    path = tiny_experiment.write(folder, model, CANDIDATES)
    tiny_experiment.run(path, candidates=("prompt",))
    return folder


@pytest.fixture
def path(begun_folder, tmp_path):
    shutil.copytree(begun_folder, tmp_path / "copy")
    return tmp_path / "copy" / "harness.yaml"


def run_further(path, change=lambda host: None, overrides=(), candidates=()):
    """Ask what is left of the candidates, with a model in memory that `change` may alter."""
    loaded = config.load(path, overrides, candidates)
    session = prepare_session(loaded, Scope(), SilentProgress())
    session.slot.host = ModelHost(session.source, session.machine)
    change(session.slot.host)
    return experiment.run_all(session, loaded)


def double_bos(host):
    host.tokenizer.chat_template = "{{ bos_token }}" + host.tokenizer.chat_template


def negate_norm(host):
    """Compute as a library with a mistake might: the same prompts, other answers."""
    host.model.model.norm.weight.data *= -1


def verdict(found, name):
    return next(f.verdict for f in found.facts if f.name == name)


def rule_of_control(found, name="shots"):
    return next(r for r in verdict(found, name).rules if r.name == "control")


def open_store(path):
    return Store(path.parent / "runs")


@pytest.mark.e2e
def test_a_base_that_answers_as_stored_passes_its_rows_stay_and_where_all_is_reused_nothing_is_measured(path):
    before = {p: p.read_bytes() for p in path.parent.glob("runs/rows/*/rows.parquet")}
    control = rule_of_control(run_further(path))
    assert control.outcome == "pass"
    measured = store.controls(open_store(path))
    n = sum(block.n for block in measured[-1].blocks)
    assert f"{n} items of the base were re-evaluated and came back as stored" in control.sentence
    assert {p: p.read_bytes() for p in before} == before
    kept = (path.parent / "runs" / "control" / measured[-1].id).glob("*.jsonl")
    assert sum(len(store.read_measured(p)) for p in kept) == n >= 10
    assert rule_of_control(run_further(path)).outcome == "pass"
    assert store.controls(open_store(path)) == measured


@pytest.mark.e2e
def test_each_measurement_asks_generated_answers_and_the_next_other_block_unless_a_limit_cuts_it(path):
    session = tiny_experiment.session(path)
    for _ in range(2):
        measure_control(session, session.source, 2)
    asked = [{b.task for b in one.blocks} for one in store.controls(open_store(path))]
    assert all("facts" in tasks for tasks in asked)
    assert set().union(*asked) == {"facts", "sums", "prose"}
    session = tiny_experiment.session(path, limit=3)
    assert measure_control(session, session.source, 3) == ""


@pytest.mark.e2e
def test_other_prompts_than_stored_are_drift_whatever_the_candidate_scores(path):
    found = run_further(path, double_bos)
    assert verdict(found, "shots").outcome == "harness-drift"
    said = verdict(found, "shots").sentence
    n = sum(block.n for block in store.controls(open_store(path))[-1].blocks)
    assert said.startswith(f"DRIFT: control: 6 of {n} prompts of the base are other tokens now")
    assert "facts/fact-" in said
    assert verdict(found, "prompt").outcome == "pass"  # its rows are from before


@pytest.mark.e2e
def test_other_answers_in_the_same_environment_are_drift_and_exit_with_4(path):
    found = run_further(path, negate_norm)
    assert "came back otherwise in the same environment" in verdict(found, "shots").sentence
    assert rule_of_control(found).numbers["n_reworded"] == 0
    judged = release.gate(path, "shots", ["gate.on_inconclusive=pass"])
    code = exit_code(found, GatePolicy(on_inconclusive="pass"), by_verdict=True)
    assert code == release.combine_exit_codes(judged) == 4
    assert judged[0].verdict.sentence == verdict(found, "shots").sentence
    assert release.gate_document(judged[0]).last_line.startswith("shots: DRIFT")


def mark_from_elsewhere(path):
    """Say of all stored rows that another machine computed them."""
    elsewhere = store.keep_environment(open_store(path), {"transformers": "5.1"})
    for file in path.parent.glob("runs/rows/*/origins.json"):
        origins = {k: [elsewhere, v[1]] for k, v in json.loads(file.read_text()).items()}
        file.write_text(json.dumps(origins))


def facts(flipped=0, n=320, aa=(22.0, 1000.0), **changes):
    named = tuple(f"facts/{i}" for i in range(flipped))
    fields = {"reworded": (), "differing": (), "flipped": named, "changed": "torch 2.8 → 2.9", **changes}
    return ControlFacts("one", 2, 0, n, aa_flips=aa[0], aa_n=aa[1], **fields)


def test_flips_are_drift_from_where_the_exact_binomial_test_is_below_one_percent():
    drifted = [k for k in range(40) if has_drifted(facts(k))]
    expected = [k for k in range(1, 40) if scipy_stats.binom.sf(k - 1, 320, 0.022) < 0.01]
    assert drifted == expected
    assert expected[0] == 15
    found = control_rule([facts(9)])
    assert found.outcome == "pass"
    assert "9 of them with another score, which the A/A rate of 2.2 % allows" in found.sentence
    assert has_drifted(facts(differing=("facts/1",)))
    assert control_rule([facts(), facts(differing=("facts/1",))]).outcome == "harness-drift"


@pytest.mark.e2e
def test_the_same_answers_elsewhere_are_no_drift_and_their_flips_make_the_rate_of_later_ones(path):
    mark_from_elsewhere(path)
    assert rule_of_control(run_further(path)).outcome == "pass"
    (run,) = [run for run in store.list_runs(open_store(path)) if run.candidate == "shots"]
    (first,) = StoredRows(open_store(path)).controls_of(run)
    assert (first.aa_flips, first.aa_n) == (0.5, 120.0)
    session = tiny_experiment.session(path)
    later = measure_control(session, session.source, 2)
    for digest in run.rows.values():
        store.keep_origin(open_store(path), digest, 0, Origin("", later))
    (second,) = StoredRows(open_store(path)).controls_of(run)
    assert (second.aa_flips, second.aa_n) == (0.5, 120.0 + first.n_other)
    of_tasks = (TaskNoise("facts", 100, {"layout": 7}, None),)
    store.save_noise(open_store(path), Noise("1", "1", "m", "base", "fp32", "cpu", "e", "l", of_tasks))
    (measured,) = StoredRows(open_store(path)).controls_of(run)
    assert (measured.aa_flips, measured.aa_n) == (7.0, 100.0 + first.n_other)
