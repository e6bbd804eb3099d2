"""Gates on stored runs and on evaluations from elsewhere, champions and pinned items, on the command line."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial
from pathlib import Path

import inspect_logs
import lmeval_folder
import numpy as np
import pytest
from conftest import find_shared_data

from harness import config, gate, store
from harness.analysis.gate_verdict import GateResult, worst_result
from harness.analysis.verdict import Verdict
from harness.data import load_task
from harness.errors import IncompatibleRuns, UserError
from harness.experiment.study import load_study
from harness.lifecycle import release
from harness.lifecycle.release import candidate_runs
from harness.spec import GatePolicy
from harness.store import Store
from tests.fake_rows import flips

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = """
import sys
for name in ('torch', 'transformers', 'trl', 'peft'):
    sys.modules[name] = None
from harness.cli import main
for words in eval(sys.argv[1]):
    sys.argv = ['harness', 'gate', *words]
    try:
        main()
    except SystemExit as ended:
        print('exit code', ended.code)
"""


def arms(folder, n=300, tasks=4, gains=8, losses=8, **changes):
    base, new = flips(n, gains, losses)
    names = [f"task_{i}" for i in range(tasks)]
    old = lmeval_folder.write(folder / "base", dict.fromkeys(names, base))
    return old, lmeval_folder.write(folder / "tuned", dict.fromkeys(names, new), **changes)


def judge(old, new, **policy):
    return release.gate_folders(old, new, GatePolicy(**policy))


def rewrite(folder, change, pattern="samples_*"):
    """Change the list of rows of each file of samples by a function."""
    for file in folder.rglob(pattern):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("\n".join(map(json.dumps, change(lines))))


# Stored runs


@pytest.mark.e2e
def test_the_gate_needs_no_torch_for_a_run_and_for_what_others_evaluated(copy, tmp_path):
    old, new = arms(tmp_path, losses=60)
    words = ["--candidate", "lora", "-c", str(copy)], ["--base", str(old), "--candidate", str(new)]
    command = [sys.executable, "-c", WITHOUT_TORCH, repr(words)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search(r"\nlora: .*\nexit code [34]\n", result.stdout), result.stderr
    assert "FAIL: macro over 4 tasks: −17." in result.stdout
    assert result.stdout.endswith("exit code 3\n")


def test_a_changed_level_is_judged_and_changed_training_rows_need_no_new_verdict(copy):
    (judged,) = release.gate(copy, "prompt", ["gate.target={min: 0.99}"])
    assert judged.verdict.outcome == "fail"
    (judged,) = release.gate(copy, "lora", ["gate.target={gain: 0.5}"])
    rule = next(r for r in judged.verdict.rules if r.name == "target")
    assert "over the best untrained candidate" in rule.sentence

    file = copy.parent / "suites" / "letters" / "train.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert release.gate(copy, "lora")[0].verdict.sentence


def test_a_run_that_has_not_answered_the_suites_yet_is_missing_and_the_next_step_names_the_file(copy):
    suite = (copy.parent / "suites" / "general.yaml").read_text()
    for task in ("sums", "facts", "prose"):
        suite = suite.replace(f"name: {task}", f"name: other_{task}")
    (copy.parent / "suites" / "general.yaml").write_text(suite)
    with pytest.raises(
        IncompatibleRuns, match="found no answers to other_sums, other_facts, other_prose"
    ) as refused:
        release.gate(copy, "lora", ["gate.macro=0.1"])
    assert str(refused.value).endswith(f"next: harness compare --candidates lora -c {copy} gate.macro=0.1")


def test_without_the_bases_rows_nothing_is_judged(copy):
    at = Store(copy.parent / "runs")
    run = candidate_runs(load_study(config.load(copy)), "lora")[0]
    identity = store.read_identity(at, run.rows["facts/test"])
    shutil.rmtree(at.rows(replace(identity, weights_digest=run.base_digest).digest))
    with pytest.raises(
        IncompatibleRuns, match=f"no rows of the base.*--candidates lora -c {copy} precision="
    ):
        release.gate(copy, "lora", ["precision=fp32"])


def test_a_task_that_changed_since_the_run_is_refused_by_the_name_of_its_digest(command, copy):
    changed = copy.parent / "suites" / "general" / "facts.jsonl"
    changed.write_text(changed.read_text().replace('"reference": "3"', '"reference": "three"'))
    result = command("gate", "--candidate", "lora", "-c", str(copy), check=5)
    assert "facts/test (task_version '" in result.stderr
    assert "sums/test" not in result.stderr


def test_a_run_may_be_named_by_its_id_and_what_names_none_is_refused(copy):
    run = next(r for r in store.list_runs(Store(copy.parent / "runs")) if r.candidate == "lora")
    assert release.gate(copy, run.run_id)[0].candidate == "lora"
    for name, options, expected in (
        ("lra", {}, "did you mean 'lora'"),
        ("", {}, "what to judge; next: --candidate NAME, one of: bag, hybrid, lora,"),
        ("", {"base": copy.parent}, "what to judge; next: --base DIR --candidate DIR"),
        ("lora", {"baseline": "yesterday"}, "base or champion"),
    ):
        with pytest.raises(UserError, match=expected):
            release.gate(copy, name, **options)
    with pytest.raises(IncompatibleRuns, match=r"no run of seed 7; expected one of its seeds \(0\)"):
        gate(copy, candidate="lora", seed=7)


# Champions


def test_a_promoted_run_is_what_the_gate_compares_with(copy):
    path, champion = release.promote_named(copy, "lora", despite="a test")
    assert path == copy.parent / "baselines" / "champions" / "letters.json"
    (judged,) = release.gate(copy, "lora")
    assert judged.baseline.startswith("the champion lora (tiny-lora-s0-")
    assert judged.verdict.outcome == "pass"  # its own weights, by identity
    assert release.gate(copy, "lora", baseline="base")[0].baseline == "the base"
    (by_test,) = release.gate(copy, "prompt")
    assert "identity" not in by_test.verdict.sentence
    assert champion.scores["letters exact_match"][3] == 12
    assert str(copy.parent) not in path.read_text()


def test_a_promotion_says_how_often_one_of_several_fine_tunes_passes_by_chance(copy):
    _, champion = release.promote_named(copy, "lora", despite="a test")
    note = release.family_note(copy, champion)
    assert note.startswith(
        "if each of the 2 fine-tunes had lost exactly what the margin allows, one would still pass with a chance"
        " of up to 10 %"
    )
    assert release.family_note(copy, replace(champion, candidate="prompt")) == ""


def test_of_several_seeds_the_worst_verdict_is_the_one_that_the_exit_code_tells():
    def make_result(outcome):
        return GateResult((), Verdict(outcome, (), None, 0, 0, (), None, ""), GatePolicy(), candidate=outcome)

    several = list(map(make_result, ("pass", "inconclusive", "fail", "pass")))
    assert release.combine_exit_codes(several) == 3
    assert worst_result(several).candidate == "fail"
    assert worst_result(several[:2]).candidate == "inconclusive"


def test_a_run_is_promoted_without_a_pass_or_suites_only_for_a_reason_that_is_kept(copy):
    with pytest.raises(UserError, match=r"not a pass against the base.*--force"):
        release.promote_named(copy, "lora")
    assert not (copy.parent / "baselines").exists()
    path, champion = release.promote_named(copy, "lora", despite="the customer accepts it")
    assert champion.verdict in ("fail", "inconclusive")
    assert champion.sentence.startswith(("FAIL: ", "UNDECIDED: "))
    assert json.loads(path.read_text())["despite"] == "the customer accepts it"

    with pytest.raises(UserError, match="answers no task of the suites"):
        release.promote_named(copy, "bag")
    _, champion = release.promote_named(copy, "bag", despite="it is enough")
    assert champion.verdict == ""
    assert champion.sentence == (
        "not judged: bag: found the method classifier, which answers no task of the suites; "
        "expected a language model, with capability to lose"
    )


def test_a_missing_champion_or_run_is_refused_with_the_command(copy):
    with pytest.raises(IncompatibleRuns, match="harness promote"):
        release.gate(copy, "lora", baseline="champion")
    with pytest.raises(IncompatibleRuns, match="only runs of another recipe") as refused:
        release.gate(copy, "lora", ["candidates.lora.params.r=4"])
    step = f"next: harness compare --candidates lora -c {copy} candidates.lora.params.r=4"
    assert str(refused.value).endswith(step)


# Pinned items


def test_a_pinned_item_becomes_a_suite_asked_as_its_task_and_pinning_it_again_changes_nothing(copy):
    file, added, listed = release.pin(copy, "lora", ["facts/fact-1", "facts/fact-2", "sums/sum-3"])
    assert (added, listed) == (3, False)
    suite = next(s for s in config.read_suites(file.parent) if s.name == "regressions")
    expected = [("facts-pinned", "generate"), ("sums-pinned", "choice")]
    assert [(t.name, t.kind) for t in suite.tasks] == expected
    assert suite.role == "regression"
    before = {p: p.read_bytes() for p in file.parent.rglob("*") if p.is_file()}
    assert release.pin(copy, "lora", ["facts/fact-1"])[1] == 0
    assert {p: p.read_bytes() for p in file.parent.rglob("*") if p.is_file()} == before
    loaded = config.load(copy, ["suites=[suites/general.yaml, suites/regressions.yaml]"])
    tasks = {t.name: t for s in loaded.experiment.suites for t in s.tasks}
    for name in ("facts", "sums"):
        pinned = load_task(tasks[f"{name}-pinned"], 0).test[0]
        original = {e.id: e for e in load_task(tasks[name], 0).test}[pinned.id]
        for field in ("messages", "references", "choices"):
            assert getattr(pinned, field) == getattr(original, field)


def test_items_that_cannot_be_pinned_are_refused_all_at_once_and_nothing_is_written(copy):
    with pytest.raises(UserError) as refused:
        release.pin(copy, "lora", ["facts/fact-99", "riddles/x", "prose/text-1", "fact-1"])
    assert len(refused.value.problems) == 4
    assert not (copy.parent / "suites" / "regressions.yaml").exists()


# The forms of a verdict


def test_a_verdict_is_told_as_json_junit_and_on_the_summary_page_of_ci(command, copy, tmp_path, monkeypatch):
    page, file = tmp_path / "summary.md", tmp_path / "ci" / "gate.xml"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    result = command("gate", "--candidate", "prompt", "-c", str(copy), "--json", "--junit", str(file))
    (printed,) = json.loads(result.stdout)
    assert printed["exit_code"] == result.returncode == 0
    assert {r["name"] for r in printed["rules"]} >= {"macro", "each", "validity"}
    assert {c["task"] for c in printed["comparisons"]} == {"sums", "facts", "prose"}
    assert page.read_text().startswith("before\n## PASS: prompt against the base")
    assert "| macro | PASS |" in page.read_text()
    root = ET.parse(file).getroot()
    names = [case.get("name") for case in root.findall("testsuite/testcase")]
    assert names == "macro each critical regressions validity target drift control".split()
    assert root.find("testsuite").get("failures") == "0"


# Results made elsewhere


@pytest.mark.e2e
def test_an_equal_model_passes_unless_the_samples_of_a_task_are_gone_from_both_arms(tmp_path):
    old, new = arms(tmp_path, n=1000, tasks=7, gains=20, losses=20)
    judged = judge(old, new)
    assert (judged.verdict.outcome, judged.verdict.macro.n) == ("pass", 7000)
    for arm in (old, new):
        next(arm.rglob("samples_task_6_*")).unlink()
        file = next(arm.rglob("results_*"))
        results = json.loads(file.read_text())
        file.write_text(json.dumps({**results, "configs": {f"task_{i}": {} for i in range(7)}}))
    judged = judge(old, new)
    assert judged.verdict.outcome == "inconclusive"
    assert judged.notes == ("not finished by both, left out: task_6",)


def test_a_task_that_only_one_model_answered_leaves_the_verdict_open(tmp_path):
    old, new = arms(tmp_path, n=40, tasks=8, gains=1, losses=1)
    for i in range(1, 8):
        for file in new.rglob(f"samples_task_{i}_*"):
            file.unlink()
    judged = judge(old, new)
    assert (judged.verdict.outcome, release.combine_exit_codes([judged])) == ("inconclusive", 4)
    assert "tasks: 7 tasks not answered by both (task_1, task_2" in judged.verdict.sentence
    selected = judge(old, new, tasks=("task_0",))
    assert "tasks: " not in selected.verdict.sentence
    left_out = ", ".join(f"task_{i}" for i in range(1, 8))
    assert selected.notes == (f"not named by gate.tasks, left out: {left_out}",)


def test_few_samples_are_undecided_under_the_policy_of_the_command_and_in_junit(command, tmp_path):
    old, new = arms(tmp_path, n=40, gains=1, losses=1)
    assert command("gate", "--base", str(old), "--candidate", str(new)).returncode == 4
    loose = ("gate.on_inconclusive=pass", "gate.macro=0.03")
    assert command("gate", "--base", str(old), "--candidate", str(new), *loose).returncode == 0
    assert command("gate", "--base", str(old), "--candidate", str(new), "gate.macr=0.03").returncode == 2

    for policy, element in (("fail", "failure"), ("warn", "skipped")):
        file = tmp_path / f"{policy}.xml"
        judged = judge(old, new, on_inconclusive=policy)
        release.write([judged], file, None)
        assert ET.parse(file).getroot().find(f"testsuite/testcase[@name='macro']/{element}") is not None


@pytest.mark.parametrize(("n_choices", "n_right"), [((4, 4), 75), ((2, 8), 94)])
def test_chance_is_the_mean_of_one_over_the_choices_so_a_guesser_is_not_admitted(
    n_choices, n_right, tmp_path
):
    base = np.r_[np.ones(n_right), np.zeros(300 - n_right)]
    old, new = (lmeval_folder.write(tmp_path / name, {"arc": base}) for name in ("a", "b"))
    for file in tmp_path.glob("*/*/samples*"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        cut = [line | {"resps": line["resps"] * 2} for line in lines]
        cut = [{**line, "resps": line["resps"][: n_choices[i % 2]]} for i, line in enumerate(cut)]
        file.write_text("".join(json.dumps(line) + "\n" for line in cut))
    judged = judge(old, new)
    assert "arc cannot show forgetting" in judged.tasks[0].why_not


def change_hash(name):
    return lambda lines: [{**line, name: "other"} if i == 3 else line for i, line in enumerate(lines)]


OTHER_ARMS = {
    **{
        name: ({}, change_hash(name), f"task_0: {name} differs on 1 of 30 items")
        for name in ("doc_hash", "prompt_hash")
    },
    "precision": ({"model_dtype": "torch.float32"}, list, "differ in model_dtype"),
    "items": ({}, lambda lines: lines[:20], r"10 items are in one of the two only.*--limit"),
    "filter": (
        {},
        lambda lines: [{**line, "filter": "flexible-extract"} for line in lines],
        "differ in filter: 'none' and 'flexible-extract'",
    ),
}


@pytest.mark.parametrize("name", OTHER_ARMS)
def test_arms_that_were_asked_otherwise_are_not_compared(tmp_path, name):
    changes, change, expected = OTHER_ARMS[name]
    old, new = arms(tmp_path, n=30, tasks=1, **changes)
    rewrite(new, change)
    with pytest.raises(IncompatibleRuns, match=expected):
        judge(old, new)


LATER = "2026-04-01T00-00-00.000001"


def test_of_one_output_folder_for_two_models_the_printed_step_judges_the_right_one(command, tmp_path):
    logs, n = tmp_path / "out", 800
    base, tuned = (np.arange(n) < share * n for share in (0.85, 0.65))
    lmeval_folder.write(logs, {"arc_easy": base.astype(float)}, model="org/base")
    lmeval_folder.write(logs, {"arc_easy": tuned.astype(float)}, model="org/tuned", date=LATER)
    refused = command("gate", "--base", str(logs), "--candidate", str(logs / "org__tuned"))
    assert refused.returncode == 2
    assert (
        f"logs of 2 models or configurations (org/base in org__base/results_{lmeval_folder.DATE}.json, "
        in refused.stderr
    )
    step = refused.stderr.strip().partition("next: ")[2].partition(" or ")[0]
    assert step == f"--base {logs}/org__base/results_{lmeval_folder.DATE}.json"
    judged = command("gate", *shlex.split(step), "--candidate", str(logs / "org__tuned"))
    assert judged.returncode == 3
    assert "FAIL: org/tuned against org/base" in judged.stdout
    assert re.search(r"800 +85\.0 .* 65\.0 .* 160/0", judged.stdout)


SECOND = {"piqa": [1.0] * 30}
# A second evaluation in the folder, how it differs, the rearrangement, and the message.
FOLDERS_THAT_ARE_REFUSED = {
    "the same task twice": (
        {"arc": [0.0] * 30}, {}, None, r"2 evaluations of arc \(results_2026-03.*2026-04",
    ),
    "another precision": (
        *(SECOND, {"model_dtype": "torch.float32"}, None),
        "org/m in .*org/m in .*; they differ in model_dtype",
    ),
    "no results": (SECOND, {}, lambda folder: [file.unlink() for file in folder.rglob("results_*")],
                   "2 models .*differ in nothing that names their model"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS_THAT_ARE_REFUSED)
def test_a_folder_that_is_not_one_evaluation_is_refused_and_a_printed_step_reads_one(tmp_path, name):
    second, changes, rearrange, expected = FOLDERS_THAT_ARE_REFUSED[name]
    old, new = (lmeval_folder.write(tmp_path / arm, {"arc": [1.0] * 30}, model="org/m") for arm in "ab")
    if second is not None:
        lmeval_folder.write(new, second, **{"date": LATER, "model": "org/m", **changes})
    if rearrange is not None:
        rearrange(new)
    with pytest.raises(UserError, match=expected) as refused:
        judge(old, new)
    step = str(refused.value).partition("next: ")[2]
    match = re.search(rf"(?:--candidate|name) ({new}/\S+)", step)
    (task,) = judge(old, Path(match[1]), tasks=("arc",)).tasks
    assert task.comparison.n == 30


def test_evaluations_of_other_tasks_of_one_model_are_one_arm(tmp_path):
    """Where an evaluation ran and how each task was asked do not identify the model."""
    for arm in "ab":
        scores = [1.0, 0.0 if arm == "b" else 1.0] * 15
        lmeval_folder.write(tmp_path / arm, {"arc": scores}, model="org/m")
        elsewhere = {"batch_size": 1, "device": "cpu", "model_args": {"pretrained": "org/m"}}
        elsewhere |= {"limit": 30, "gen_kwargs": {"temperature": 0}, "fewshot_seed": 7}
        lmeval_folder.write(tmp_path / arm, {"piqa": scores}, model="org/m", date=LATER, **elsewhere)
    judged = judge(tmp_path / "a", tmp_path / "b")
    assert {t.task.name: len(t.comparison.lost) for t in judged.tasks} == {"arc": 15, "piqa": 15}
    assert judged.notes[0] == "the logs of both arms name one model, org/m, under one configuration"


def test_samples_that_were_cut_are_refused_by_the_number_that_the_results_count(tmp_path):
    old, new = arms(tmp_path, n=30, tasks=1)
    for arm in (old, new):
        file = next(arm.rglob("results_*"))
        counts = {"n-samples": {"task_0": {"original": 40, "effective": 30}}}
        file.write_text(json.dumps({**json.loads(file.read_text()), **counts}))
    assert judge(old, new).tasks
    for arm in (old, new):
        rewrite(arm, lambda lines: lines[:20])
    with pytest.raises(UserError, match="found 20 of 30 samples"):
        judge(old, new)


def test_tasks_of_one_arm_alone_are_named_and_none_in_both_is_refused(tmp_path):
    old = lmeval_folder.write(tmp_path / "a", {"arc": np.ones(30), "piqa": np.ones(30)})
    new = lmeval_folder.write(tmp_path / "b", {"arc": np.ones(30)})
    assert "left out: piqa" in judge(old, new).notes[0]
    with pytest.raises(IncompatibleRuns, match="no task in both"):
        release.gate_folders(old, lmeval_folder.write(tmp_path / "c", {"boolq": np.ones(9)}), GatePolicy())


@pytest.mark.parametrize(
    ("text", "said"), [("", "no samples"), ("{]", "not a sample"), ('{"a": 1}', "not a sample")]
)
def test_a_damaged_file_is_refused_with_its_place(tmp_path, text, said):
    old, new = arms(tmp_path, n=30)
    next(new.rglob("samples_task_0_*")).write_text(text)
    with pytest.raises(UserError, match=said):
        judge(old, new)
    with pytest.raises(UserError, match="--log_samples"):
        judge(tmp_path / "nowhere", new)


@pytest.mark.parametrize("option", [("--baseline", "champion"), ("-c", "harness.yaml")])
def test_what_is_for_stored_runs_is_refused_with_two_folders(command, tmp_path, option):
    old, new = (lmeval_folder.write(tmp_path / name, {"t": [1, 0]}) for name in ("old", "new"))
    result = command("gate", "--base", str(old), "--candidate", str(new), *option)
    assert result.returncode == 2
    assert f"--base: found {option[0]} as well" in result.stderr


def copy_renamed(old, new):
    """Copy one model's folder as another model's: with its lines in another order, and another date."""
    shutil.copytree(old, new)
    rewrite(new, lambda lines: lines[::-1])
    for file in [*new.rglob("*_2026*")]:
        file.rename(str(file).replace(lmeval_folder.DATE, LATER))
    (new / "someone__model").rename(new / "org__tuned")


@pytest.mark.parametrize(
    "make", [lambda old, new: new.symlink_to(old), copy_renamed], ids=["link", "renamed"]
)
def test_a_model_is_not_compared_with_itself(command, tmp_path, make):
    old, _ = arms(tmp_path, n=30)
    make(old, tmp_path / "again")
    for arms_alike in ((old, old), (old, tmp_path / "again")):
        result = command("gate", "--base", str(arms_alike[0]), "--candidate", str(arms_alike[1]))
        assert result.returncode == 2
        assert f"found the answers of --base {old} again, the same in all of 120 items" in result.stderr


def test_a_task_whose_answers_are_the_same_is_named(tmp_path):
    old, new = arms(tmp_path, n=30, tasks=2)
    (samples,) = old.rglob("samples_task_1_*")
    shutil.copy(samples, new / samples.relative_to(old))
    assert judge(old, new).notes == ("the same answers to every item in both arms, as if copied: task_1",)


@pytest.mark.parametrize("left_out", ["", "filter"])
def test_a_log_that_holds_each_item_twice_is_refused(tmp_path, left_out):
    old, new = arms(tmp_path, n=30, tasks=1)

    def repeat_lines(lines):
        cut_lines = [{k: v for k, v in line.items() if k != left_out} for line in lines]
        return [*cut_lines, *({**line, "acc": 0.0, "resps": [[["-1.0", "False"]]]} for line in cut_lines)]

    rewrite(new, repeat_lines)
    with pytest.raises(UserError, match=r"found each of its 30 items 2 times \(doc_id 0, 1.*every item once"):
        judge(old, new)


@pytest.mark.parametrize("kept", [("doc", "arguments", "target"), ()])
def test_rows_without_hashes_are_compared_by_what_they_hold(tmp_path, kept):
    old, new = arms(tmp_path, n=30, tasks=1)

    def drop_hashes(lines):
        fields = ("doc_id", "resps", "metrics", "acc", *kept)
        return [{name: line[name] for name in fields} for line in lines]

    for arm in (old, new):
        rewrite(arm, drop_hashes)
    notes = judge(old, new).notes
    assert notes == (() if kept else ("items paired by their id alone, as no document is logged: task_0",))
    if kept:
        rewrite(
            new, lambda lines: [{**line, "doc": {"question": "another"}} for line in lines[:1]] + lines[1:]
        )
        with pytest.raises(IncompatibleRuns, match="task_0: doc_hash differs on 1 of 30 items"):
            judge(old, new)


def test_a_task_without_a_number_of_each_item_is_named_and_the_others_are_judged(tmp_path):
    lost, pair = np.arange(400) >= 80, {"metrics": ["bleu"], "bleu": ["a reference", "an answer"]}
    for arm, scores in (("a", np.ones(400)), ("b", lost.astype(float))):
        folder = lmeval_folder.write(tmp_path / arm, {"arc": scores, "wmt": np.ones(9)})
        rewrite(folder, lambda lines: [line | pair for line in lines], "samples_wmt_*")
    judged = judge(tmp_path / "a", tmp_path / "b")
    assert ([t.task.name for t in judged.tasks], judged.verdict.outcome) == (["arc"], "fail")
    assert "wmt is not compared: metrics without one number an item (bleu)" in judged.notes
    with pytest.raises(UserError, match=r"samples_wmt.*without one number an item \(bleu\)"):
        judge(tmp_path / "a", tmp_path / "b", tasks=["wmt", "arc"])
    next((tmp_path / "b").rglob("samples_wmt*")).write_text("damaged")
    again = judge(tmp_path / "a", tmp_path / "b", tasks=["arc"])
    assert (again.verdict.outcome, again.notes[0]) == ("fail", "not named by gate.tasks, left out: wmt")


def test_a_link_to_a_folder_of_logs_is_named_as_not_followed(tmp_path):
    for arm, n_right in (("a", 40), ("b", 30), ("elsewhere", 9)):
        lmeval_folder.write(tmp_path / arm, {"arc": (np.arange(50) < n_right).astype(float)})
    link = tmp_path / "b" / "more"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "more").symlink_to(tmp_path / "elsewhere")
    judged = judge(tmp_path / "a", tmp_path / "b")
    assert (
        f"{link} is a link to a folder, which is not followed; next: name that folder itself" in judged.notes
    )
    with pytest.raises(UserError, match=r"neither; .*links/more is a link, which is not followed"):
        judge(tmp_path / "a", tmp_path / "links")


@pytest.mark.parametrize("write", [lmeval_folder.write, partial(inspect_logs.write, zipped=False)])
def test_a_file_of_json_that_is_larger_than_is_read_is_refused_with_the_bound(tmp_path, write):
    for arm, scores in (("a", [1.0, 0.0, 1.0]), ("b", [1.0, 0.0, 0.0])):
        write(tmp_path / arm, {"arc": scores})
    (file,) = (tmp_path / "b").rglob("*.json")
    with file.open("r+b") as handle:
        handle.truncate(2**31 + 1)  # a sparse file, which takes no disk space
    with pytest.raises(
        UserError, match="2,147,483,649 bytes of JSON in one file; expected at most 2,147,483,648"
    ):
        judge(tmp_path / "a", tmp_path / "b")


def test_real_samples_of_lm_eval_are_read(tmp_path):
    """Pythia-14m against itself with every third answer of one task turned wrong."""
    by_task: dict[str, list] = {}
    with gzip.open(find_shared_data("rows/lmeval_samples_pythia14m/per_sample.jsonl.gz"), "rt") as lines:
        for row in map(json.loads, lines):
            by_task.setdefault(row["task"], []).append(row)
    for arm in ("base", "tuned"):
        folder = tmp_path / arm / "EleutherAI__pythia-14m"
        folder.mkdir(parents=True)
        for task, rows in by_task.items():
            changed = [
                {**r, "acc": 0.0}
                if arm == "tuned" and i % 3 == 0 and "winogrande" in task and "acc" in r
                else r
                for i, r in enumerate(rows)
            ]
            text = "\n".join(map(json.dumps, changed))
            (folder / f"samples_{task}_{lmeval_folder.DATE}.jsonl").write_text(text)
    judged = judge(tmp_path / "base", tmp_path / "tuned")
    lost = {t.task.name: len(t.comparison.lost) for t in judged.tasks}
    assert sum(lost.values()) == sum(n for task, n in lost.items() if "winogrande" in task) > 10
    assert len(lost) == len(by_task)


def test_a_direction_that_is_not_logged_is_told_by_the_name_and_said(tmp_path):
    arms = [
        lmeval_folder.write(tmp_path / name, {"t": values}, n_choices=1)
        for name, values in (("base", [0, 0, 0, 0, 1] * 80), ("tuned", [1, 0, 1, 0, 1] * 80))
    ]
    for samples in tmp_path.rglob("samples_*.jsonl"):
        text = samples.read_text().replace('"acc_norm"', '"other"').replace('"acc"', '"toxicity_score"')
        samples.write_text(text)
    judged = judge(*arms)
    assert len(judged.tasks[0].comparison.lost) == 160
    note = "whether higher or lower is better is not logged and told by the name: toxicity_score of t, lower"
    assert note in judged.notes
