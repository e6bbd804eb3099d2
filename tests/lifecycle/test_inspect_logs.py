"""The gate on inspect's logs: real logs, the zipped and the plain form, and all refusals."""

import json
import zipfile

import inspect_logs
import pytest

from harness.errors import IncompatibleRuns, UserError
from harness.lifecycle import release
from harness.lifecycle.eval_logs import read_arm
from harness.lifecycle.inspect_logs import find_evaluations
from harness.spec import GatePolicy
from tests.fake_rows import flips

REAL = inspect_logs.REAL


def letters(scores):
    return ["C" if score else "I" for score in scores]


def arms(folder, n=300, tasks=4, gains=8, losses=8, zipped=True, **changes):
    """Write two folders of logs whose tasks gain and lose items; `changes` apply to the second."""
    base, new = (letters(answers) for answers in flips(n, gains, losses))
    names = [f"task_{i}" for i in range(tasks)]
    path = inspect_logs.write(folder / "base", dict.fromkeys(names, base), zipped=zipped)
    return path, inspect_logs.write(folder / "tuned", dict.fromkeys(names, new), zipped=zipped, **changes)


def read_logs(path):
    return read_arm("--base", path, find_evaluations(path))


def read_tasks(path):
    return read_logs(path).tasks


def gate(base_path, new_path):
    return release.gate_folders(base_path, new_path, GatePolicy())


def test_real_logs_of_inspect_are_read_and_both_forms_say_the_same():
    """The mock model answers 12 questions: the base has one error, the other arm four (see inspect_logs.py)."""
    result = gate(REAL / "base", REAL / "tuned")
    (task,) = result.tasks
    assert (task.task.name, task.comparison.metric, task.task.chance) == ("letters", "choice", 0.25)
    assert task.comparison.lost == ("3", "6", "8")
    assert task.comparison.gained == ()
    assert result.verdict.macro.score == pytest.approx(-0.25)

    zipped, plain_items = (read_tasks(path)["letters"] for path in (REAL / "tuned", REAL / "tuned.json"))
    assert zipped == plain_items
    expected = ("3", "6", "8")
    assert gate(REAL / "base" / "letters.eval", REAL / "tuned.json").tasks[0].comparison.lost == expected


def test_letters_words_and_numbers_are_scores_and_epochs_are_averaged(tmp_path):
    values = ["C", "I", "P", "N", True, 0.25, "yes", ["C", "I", "C", "C"]]
    same_epochs = [value if isinstance(value, list) else [value] * 4 for value in values]
    inspect_logs.write(tmp_path, {"quiz": same_epochs})
    item_scores = [item.score for item in read_tasks(tmp_path)["quiz"].items.values()]
    assert item_scores == [1, 0, 0.5, 0, 1, 0.25, 1, 0.75]
    log = inspect_logs.log_of("quiz", ["C"])
    log["samples"][0]["scores"]["match"]["value"] = [1, 0]
    (tmp_path / "lists").mkdir()
    inspect_logs.zip_log(tmp_path / "lists" / "a.eval", log)
    (problem,) = read_logs(tmp_path / "lists").not_compared.values()
    assert problem.found == "no score that is a rate in [0, 1] (none at all)"


def test_answers_that_were_cut_off_count_for_the_validity(tmp_path):
    base_path, new_path = arms(tmp_path, n=300, tasks=1, gains=0, losses=0, zipped=False)
    file = next(new_path.iterdir())
    log = json.loads(file.read_text())
    for sample in log["samples"][:60]:
        sample["output"]["choices"][0]["stop_reason"] = "max_tokens"
    file.write_text(json.dumps(log))
    rule = next(r for r in gate(base_path, new_path).verdict.rules if r.name == "validity")
    assert (rule.outcome, rule.numbers["new"]) == ("fail", pytest.approx(0.2))


def test_what_did_not_finish_never_counts(tmp_path):
    inspect_logs.write(tmp_path, {"quiz": ["I"] * 9})
    inspect_logs.write(tmp_path, {"quiz": ["C"] * 9}, created="2026-05-01T00:00:00+00:00", status="error")
    inspect_logs.write(tmp_path, {"quiz": ["C"] * 9}, created="2026-06-01T00:00:00+00:00", invalidated=True)
    assert {item.score for item in read_tasks(tmp_path)["quiz"].items.values()} == {0.0}


def test_a_zipped_log_that_was_cut_short_is_refused_as_not_finished(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as archive:
        archive.writestr("_journal/start.json", json.dumps({"version": 2, "eval": {"task": "quiz"}}))
    with pytest.raises(UserError, match=r"no finished log \(a.eval: started\)"):
        read_tasks(tmp_path)


def test_a_task_given_other_arguments_is_another_task(tmp_path):
    for subject in ("law", "music"):
        args = {"subject": subject}
        inspect_logs.write(tmp_path / subject, {"quiz": ["C"] * 9}, task_args=args, task_args_passed=args)
    assert list(read_tasks(tmp_path)) == ["quiz subject=law", "quiz subject=music"]
    with pytest.raises(
        IncompatibleRuns, match=r"no task in both \(quiz subject=law and quiz subject=music\)"
    ):
        gate(tmp_path / "law", tmp_path / "music")


WARM = {"max_tokens": 64, "temperature": 0.7}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({}, {"model_generate_config": WARM}, "differ in temperature: 'the default'"),
        ({}, {"scorers": [{"name": "match", "options": {}}]}, "differ in scorers"),
        (
            *({"model_args": {"torch_dtype": name}} for name in ("bfloat16", "float32")),
            "torch_dtype: 'bfloat16' and 'float32'",
        ),
        (*({"model_roles": {"grader": {"model": name}}} for name in ("a/one", "a/other")), "in model_roles"),
    ],
)
def test_another_version_decoding_scorer_precision_or_grader_is_refused_by_its_name(tmp_path, old, new, said):
    arms = [inspect_logs.write(tmp_path / n, {"quiz": ["C"] * 9}, **c) for n, c in (("a", old), ("b", new))]
    with pytest.raises(IncompatibleRuns, match=said):
        gate(*arms)


def test_a_log_as_both_arms_or_with_an_item_twice_is_refused(tmp_path):
    for path in (REAL / "tuned", REAL / "tuned.json"):
        with pytest.raises(UserError, match=r"answers of --base .* again, the same in all of 12 items"):
            gate(REAL / "tuned" / "letters.eval", path)

    log = inspect_logs.log_of("quiz", ["C"] * 9)
    base = inspect_logs.write(tmp_path / "base", {"quiz": ["C"] * 9})
    doubled = inspect_logs.write(
        tmp_path / "twice", {"quiz": ["C"] * 9}, zipped=False, samples=log["samples"] * 2
    )
    with pytest.raises(UserError, match=r"9 of 9 items twice in one epoch \(id quiz-0, .*once an epoch"):
        release.gate_folders(base, doubled, GatePolicy())


def test_a_sample_that_died_is_missing_or_has_no_score_is_refused(tmp_path):
    for score in (float("nan"), None, "unknown"):
        inspect_logs.write(tmp_path / str(score), {"quiz": ["C", "I", score, "C"]}, zipped=False)
        with pytest.raises(UserError, match=r"1 of 4 items without a number as match \(id quiz-2\)"):
            read_tasks(tmp_path / str(score))

    log = inspect_logs.log_of("quiz", ["C", "I", "C"])
    log["samples"][1] |= {"scores": None, "error": {"message": "connection lost"}}
    for samples, pattern in (
        (log["samples"], "id quiz-1"),
        ([], r"no samples.*--no-log-samples"),
        (log["samples"][:2], "2 of 3 samples"),
    ):
        inspect_logs.zip_log(tmp_path / "a.eval", {**log, "samples": samples})
        with pytest.raises(UserError, match=pattern):
            read_tasks(tmp_path / "a.eval")


def test_samples_of_lm_eval_beside_logs_of_inspect_are_refused(tmp_path):
    import lmeval_folder

    inspect_logs.write(tmp_path, {"quiz": ["C"] * 9})
    lmeval_folder.write(tmp_path, {"quiz": [1.0] * 9})
    with pytest.raises(UserError, match="samples of lm-eval and logs of inspect"):
        gate(tmp_path, tmp_path)


def test_a_path_that_holds_neither_says_how_to_get_them(tmp_path):
    with pytest.raises(UserError, match=r"found neither.*--log-dir DIR"):
        gate(tmp_path, tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        gate(tmp_path / "nowhere", tmp_path)
