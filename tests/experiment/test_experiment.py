"""The main job on a tiny model: same items for all, reuse of stored work, isolated failures, the control arm."""

import json
import shutil

import pytest
import tiny_experiment
import tiny_model
from scipy import stats as scipy_stats
from tiny_experiment import fact_of, runs_of

from harness import config, experiment, report, store
from harness.analysis.control_arm_drift import ControlFacts, control_rule, has_drifted
from harness.cli.compare import exit_code
from harness.errors import UserError
from harness.evaluation.control_arm import measure_control
from harness.experiment import Scope, prepare_session, report_stored
from harness.experiment.stored_rows import StoredRows
from harness.lifecycle import release
from harness.models.hf import HFCandidate, ModelHost
from harness.models.out_of_memory import HALVED
from harness.progress import SilentProgress
from harness.records import Noise, Origin, TaskNoise
from harness.spec import GatePolicy
from harness.store import Store

pytestmark = pytest.mark.usefixtures("own_cache")

UNLABELLED = ("target.labels=[]", "target.metrics=[exact_match]")
NAMES = ("prompt", "shots", "ranked", "bag", "lora", "hybrid")


def files(folder):
    """Map each result file to its size and modification time."""
    paths = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
    return {str(file.relative_to(folder)): (file.stat().st_size, file.stat().st_mtime_ns) for file in paths}


def test_what_is_trained_is_judged_and_the_classifier_is_not(finished_run):
    assert {(fact.name, fact.state) for fact in finished_run[1].facts} == {(name, "done") for name in NAMES}
    outcomes = {fact.name: fact.verdict and fact.verdict.outcome for fact in finished_run[1].facts}
    assert outcomes["prompt"] == outcomes["shots"] == outcomes["ranked"] == "pass"
    assert outcomes["lora"] in ("pass", "fail", "inconclusive")
    assert outcomes["bag"] is None
    verdict = fact_of(finished_run[1], "prompt").verdict
    assert (verdict.lost, verdict.gained) == (0, 0)
    assert finished_run[1].trivial == ("always answering “late”", 0.5)


def test_all_candidates_answer_the_same_items_and_those_of_the_same_weights_share_them(finished_run):
    at, runs = Store(finished_run[0] / "runs"), runs_of(finished_run[0] / "harness.yaml")
    ids: dict[str, set] = {}
    for run in runs.values():
        for task, rows_digest in run.rows.items():
            ids.setdefault(task, set()).add(tuple(r.example_id for r in store.read_rows(at, rows_digest)))
    assert {task: len(orders) for task, orders in ids.items()} == dict.fromkeys(ids, 1)
    assert len(next(iter(ids["letters/test"]))) == 12
    assert set(ids) == {"letters/test", "letters/validation", "sums/test", "facts/test", "prose/test"}

    shared_rows = [{k: v for k, v in runs[name].rows.items() if "letters" not in k} for name in NAMES[:3]]
    assert shared_rows[0] == shared_rows[1] == shared_rows[2]
    assert len(shared_rows[0]) == 3
    for task in ("sums/test", "facts/test", "prose/test"):
        assert runs["hybrid"].rows[task] == runs["lora"].rows[task] != runs["prompt"].rows[task]
    assert runs["hybrid"].rows["letters/test"] != runs["lora"].rows["letters/test"]

    rows = store.read_rows(at, runs["ranked"].rows["letters/test"])
    assert {row.text for row in rows} <= {"late", "money"}
    assert {row.status for row in rows} == {"ok"}


def test_a_second_compare_computes_nothing_and_says_the_same_as_the_stored_report(finished_run, copy):
    files_before = files(copy.parent / "runs")
    rerun = tiny_experiment.run(copy)
    assert files(copy.parent / "runs") == files_before
    stored = report_stored(tiny_experiment.session(copy), NAMES)
    first_json, *other_jsons = (report.to_json(r) for r in (finished_run[1], rerun, stored))
    for other_json in other_jsons:
        assert {k for k in first_json if first_json[k] != other_json[k]} <= {"header"}


def test_a_changed_recipe_computes_only_itself(copy):
    files_before = files(copy.parent / "runs" / "rows") | files(copy.parent / "runs" / "weights")
    tiny_experiment.run(copy, "candidates.shots.prompting.few_shot.shots=1")
    files_after = files(copy.parent / "runs" / "rows") | files(copy.parent / "runs" / "weights")
    assert {name: files_after[name] for name in files_before} == files_before
    sets = {name.split("/")[0] for name in set(files_after) - set(files_before)}
    assert sets == {runs_of(copy)["shots"].rows[f"letters/{split}"] for split in ("validation", "test")}


@pytest.mark.e2e
def test_a_failed_candidate_is_reported_with_its_knob_leaves_no_weights_and_may_succeed_next(tiny, tmp_path):
    candidates = "  prompt: {method: base}\n  bag: {method: classifier}\n  twice: {weights_of: bag}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    result = tiny_experiment.run(path, *UNLABELLED)
    assert {f.name: f.state for f in result.facts} == {"prompt": "done", "bag": "failed", "twice": "failed"}
    assert "no closed label set" in fact_of(result, "bag").error
    assert "labels" in fact_of(result, "bag").error
    assert runs_of(path)["bag"].state == "failed"
    assert list((tmp_path / "runs").glob("weights/*")) == []
    assert fact_of(tiny_experiment.run(path, candidates=("bag",)), "bag").state == "done"


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
    train_file = tmp_path / "suites" / "letters" / "train.jsonl"
    leaked_row = {"id": "leak", "prompt": "What follows the number 3?", "reference": "late"}
    tiny_experiment.rows(train_file, [*tiny_experiment.letters(slice(0, 5)), leaked_row])
    assert "the question of facts item fact-3 too" in str(refusal(path))


@pytest.mark.e2e
def test_a_grid_over_seeds_is_compared_with_its_first_member(tiny, tmp_path):
    lora = "{method: lora, params: {r: [1, 2], max_steps: 1, learning_rate: 0.01, max_length: 200}}"
    candidates = f"  prompt: {{method: base}}\n  lora: {lora}\n"
    result = tiny_experiment.run(
        tiny_experiment.write(tmp_path, tiny, candidates, extra="seeds: [0, 1]\n"), "suites=[]"
    )
    (ablation,) = result.ablations
    assert [(f.candidate, f.n_seeds) for f in ablation.factors] == [("lora[r=1]", 2), ("lora[r=2]", 2)]
    assert ablation.factors[1].p_adjusted == ablation.factors[1].p
    assert [len(summary.scores) for summary in result.seeds] == [2, 2]
    assert all(summary.score is not None for summary in result.seeds)


CANDIDATES = "  prompt: {method: base}\n  shots: {prompting: {few_shot: {select: knn, shots: 2}}}\n"


@pytest.fixture(scope="module")
def begun_folder(tmp_path_factory, own_cache):
    """Experiment with the base and one candidate of a model whose template writes one BOS."""
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
    """Run the remaining candidates with a model in memory that `change` may alter."""
    loaded = config.load(path, overrides, candidates)
    session = prepare_session(loaded, Scope(), SilentProgress())
    session.slot.host = ModelHost(session.source, session.machine)
    change(session.slot.host)
    return experiment.run_all(session, loaded)


def double_bos(host):
    host.tokenizer.chat_template = "{{ bos_token }}" + host.tokenizer.chat_template


def negate_norm(host):
    """Simulate a library bug: the same prompts give other answers."""
    host.model.model.norm.weight.data *= -1


def verdict(result, name):
    return next(fact.verdict for fact in result.facts if fact.name == name)


def rule_of_control(result, name="shots"):
    return next(r for r in verdict(result, name).rules if r.name == "control")


def open_store(path):
    return Store(path.parent / "runs")


@pytest.mark.e2e
def test_a_base_that_answers_as_stored_passes_its_rows_stay_and_where_all_is_reused_nothing_is_measured(path):
    bytes_before = {file: file.read_bytes() for file in path.parent.glob("runs/rows/*/rows.parquet")}
    control = rule_of_control(run_further(path))
    assert control.outcome == "pass"
    controls_before = store.controls(open_store(path))
    n_items = sum(block.n for block in controls_before[-1].blocks)
    assert f"{n_items} items of the base were re-evaluated and came back as stored" in control.sentence
    assert {file: file.read_bytes() for file in bytes_before} == bytes_before
    control_files = (path.parent / "runs" / "control" / controls_before[-1].id).glob("*.jsonl")
    assert sum(len(store.read_measured(file)) for file in control_files) == n_items >= 10
    assert rule_of_control(run_further(path)).outcome == "pass"
    assert store.controls(open_store(path)) == controls_before


@pytest.mark.e2e
def test_each_measurement_asks_generated_answers_and_the_next_other_block_unless_a_limit_cuts_it(path):
    for _ in range(2):
        session = tiny_experiment.session(path, "gate.control_blocks=2")
        measure_control(session, session.source)
    tasks_by_control = [{block.task for block in c.blocks} for c in store.controls(open_store(path))]
    assert all("facts" in tasks for tasks in tasks_by_control)
    assert set().union(*tasks_by_control) == {"facts", "sums", "prose"}
    session = tiny_experiment.session(path, "gate.control_blocks=3", limit=3)
    assert measure_control(session, session.source) == ""


@pytest.mark.e2e
def test_other_prompts_than_stored_are_drift_whatever_the_candidate_scores(path):
    result = run_further(path, double_bos)
    assert verdict(result, "shots").outcome == "harness-drift"
    sentence = verdict(result, "shots").sentence
    n_items = sum(block.n for block in store.controls(open_store(path))[-1].blocks)
    assert sentence.startswith(f"DRIFT: control: 6 of {n_items} prompts of the base are other tokens now")
    assert "facts/fact-" in sentence
    assert verdict(result, "prompt").outcome == "pass"  # its rows were stored before


@pytest.mark.e2e
def test_other_answers_in_the_same_environment_are_drift_and_exit_with_4(path):
    result = run_further(path, negate_norm)
    assert "came back otherwise in the same environment" in verdict(result, "shots").sentence
    assert rule_of_control(result).numbers["n_reworded"] == 0
    gate_results = release.gate(path, "shots", ["gate.on_inconclusive=pass"])
    code = exit_code(result, GatePolicy(on_inconclusive="pass"), by_verdict=True)
    assert code == release.combine_exit_codes(gate_results) == 4
    assert gate_results[0].verdict.sentence == verdict(result, "shots").sentence
    assert release.gate_document(gate_results[0]).last_line.startswith("shots: DRIFT")


@pytest.mark.e2e
def test_where_memory_runs_out_halved_batches_are_named_and_the_control_arm_leaves_their_blocks_out(
    path, monkeypatch
):
    answer_batch, n_tokens = HFCandidate._answer_batch, []

    def run_out(self, prompts, *rest):
        n_tokens.append(len(prompts))
        if len(prompts) > 1:
            raise MemoryError
        return answer_batch(self, prompts, *rest)

    monkeypatch.setattr(HFCandidate, "_answer_batch", run_out)
    result = run_further(path)
    assert max(n_tokens) > 1
    (block,) = store.controls(open_store(path))[-1].blocks  # of two, the one that is not generated
    assert block.task == "sums"
    run = runs_of(path)["shots"]
    assert store.origins(open_store(path), run.rows["letters/test"])[0].halved
    session = tiny_experiment.session(path)
    for rows_digest in run.rows.values():
        origin = store.origins(open_store(path), rows_digest)[0]
        store.keep_origin(open_store(path), rows_digest, 0, origin._replace(halved=True))
    (judged,) = release.gate(path, "shots", [])
    assert f"facts: {HALVED}" in judged.notes
    assert verdict(result, "shots").outcome == "pass"
    assert measure_control(session, session.source) == ""  # all blocks of the base were halved


def facts(flipped=0, n=320, aa=(22.0, 1000.0), **changes):
    items = tuple(f"facts/{i}" for i in range(flipped))
    fields = {"reworded": (), "differing": (), "flipped": items, "changed": "torch 2.8 → 2.9", **changes}
    return ControlFacts("one", 2, 0, n, aa_flips=aa[0], aa_n=aa[1], **fields)


def test_flips_are_drift_from_where_the_exact_binomial_test_is_below_one_percent():
    drifted_counts = [k for k in range(40) if has_drifted(facts(k))]
    expected_counts = [k for k in range(1, 40) if scipy_stats.binom.sf(k - 1, 320, 0.022) < 0.01]
    assert drifted_counts == expected_counts
    assert expected_counts[0] == 15
    rule = control_rule([facts(9)])
    assert rule.outcome == "pass"
    assert "9 of them with another score, which the A/A rate of 2.2 % allows" in rule.sentence
    assert has_drifted(facts(differing=("facts/1",)))
    assert control_rule([facts(), facts(differing=("facts/1",))]).outcome == "harness-drift"


@pytest.mark.e2e
def test_the_same_answers_elsewhere_are_no_drift_and_their_flips_make_the_rate_of_later_ones(path):
    other_environment = store.keep_environment(open_store(path), {"transformers": "5.1"})
    for file in path.parent.glob("runs/rows/*/origins.json"):
        origins = {k: [other_environment, v[1]] for k, v in json.loads(file.read_text()).items()}
        file.write_text(json.dumps(origins))
    assert rule_of_control(run_further(path)).outcome == "pass"
    (run,) = [run for run in store.list_runs(open_store(path)) if run.candidate == "shots"]
    (first_control,) = StoredRows(open_store(path)).controls_of(run)
    assert (first_control.aa_flips, first_control.aa_n) == (0.5, 120.0)
    session = tiny_experiment.session(path, "gate.control_blocks=2")
    later_control = measure_control(session, session.source)
    for digest in run.rows.values():
        store.keep_origin(open_store(path), digest, 0, Origin("", later_control))
    (second_control,) = StoredRows(open_store(path)).controls_of(run)
    assert (second_control.aa_flips, second_control.aa_n) == (0.5, 120.0 + first_control.n_other)
    task_noise = (TaskNoise("facts", 100, {"layout": 7}, None),)
    for device, rate in (("another card", (0.5, 120.0)), (session.machine.name, (7.0, 100.0))):
        store.save_noise(open_store(path), Noise(device, "1", "m", "b", "fp32", device, "e", "l", task_noise))
        (noise_control,) = StoredRows(open_store(path)).controls_of(run)
        assert (noise_control.aa_flips, noise_control.aa_n) == (rate[0], rate[1] + first_control.n_other)
