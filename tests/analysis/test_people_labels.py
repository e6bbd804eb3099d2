"""People's labels of answers: agreement with a metric, corrected estimates, and export and import as CSV."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
from fake_facts import candidate, make_fine_tune
from fake_facts import comparison as fake_comparison
from fake_rows import rows

from harness import config, formatting, report, store
from harness.analysis import comparison, human_preferences
from harness.analysis.candidate_facts import best_untrained
from harness.analysis.comparison import correct_comparison, correct_estimate, labels_missing
from harness.analysis.estimators import Estimate, at_level, refuse_failed
from harness.analysis.gate_rules_on_answers import target_rule
from harness.analysis.people_labels import answer_digest, calibrate, draw_items, latest_labels
from harness.analysis.verdict import TargetFacts
from harness.config.rubrics import current_labels, digest_question
from harness.experiment.study import correct_reached
from harness.lifecycle import label_file, pair_file
from harness.metrics import mean_metric
from harness.records import AnswerLabel, LabelSet
from harness.report import ExperimentReport
from harness.report.escape import spreadsheet_lines
from harness.report.sections import label_sections, label_sentences
from harness.spec import GatePolicy, TargetPolicy, Task, TaskData
from harness.store import Store
from tests import tiny_experiment

JUDGE = mean_metric("judge:helpful", lambda output, example: None)
N, N_LABELS = 600, 150


def label_set(metric, labelled, rater="ann", at="2026-01-01"):
    """Make a set of labels of (row, label)."""
    labels = [
        AnswerLabel(answer_digest(metric.name, row), row.example_id, float(label)) for row, label in labelled
    ]
    return LabelSet(f"{rater}-{at}", at, "task", "test", metric.name, rater, tuple(labels))


def label_arms(arms, truth, n):
    pick = draw_places(arms[0], n)
    return label_set(JUDGE, [(arm[i], y[i]) for arm, y in zip(arms, truth, strict=True) for i in pick])


def draw_places(drawn_rows, n):
    positions = {row.example_id: i for i, row in enumerate(drawn_rows)}
    return [positions[item] for item in draw_items(positions, "task", JUDGE.name)[:n]]


def answers(grades, lengths, name):
    graded_rows = rows(grades, JUDGE)
    return [
        replace(row, text=f"{name} {row.example_id} ".ljust(int(n), "x"))
        for row, n in zip(graded_rows, lengths, strict=True)
    ]


@pytest.fixture(scope="module")
def long_winded():
    """Grade two equally good candidates, one of which writes long, by a judge that prefers long answers."""
    draw = np.random.default_rng(1)
    truth = [(draw.random(N) < 0.6).astype(float) for _ in range(2)]
    lengths = draw.integers(40, 250, N), draw.integers(200, 900, N)
    # The longer a wrong answer is, the more often the judge passes it.
    arms = [
        answers(np.where(draw.random(N) < 0.25 * np.log2(n / 40), np.maximum(y, 1.0), y), n, name)
        for y, n, name in zip(truth, lengths, ("short", "long"), strict=True)
    ]
    labels = label_arms(arms, truth, N_LABELS)
    return arms, truth, labels


def test_a_judge_that_likes_long_answers_is_unmasked_and_what_its_own_model_made_is_named(long_winded):
    (short, long), _, labels = long_winded
    facts = calibrate(JUDGE, {"short": short, "long": long}, [("long", "short")], [labels])
    assert facts.length.low > 0
    assert facts.pairs[0].favour.low > 0
    between = facts.pairs[0].longer
    assert between.favour.low > 0
    assert between.ratio > 2
    sentences = " ".join(label_sentences(facts))
    assert "overrates longer answers" in sentences
    assert "favours the longer one by" in sentences
    assert "favours long over short" in sentences

    favour = facts.pairs[0].favour
    for arm, sign in (("long", 1), ("short", -1)):
        (text,) = [s for s in label_sentences(replace(facts, own=(arm,))) if "made from" in s]
        assert f"overrates {arm} against" in text
        ends = sorted((sign * favour.low, sign * favour.high))
        assert formatting.points(sign * favour.score, *ends) in text
    assert "no pair with another model" in " ".join(label_sentences(replace(facts, own=("long", "short"))))


def test_such_a_judge_is_corrected(long_winded):
    (short, long), truth, labels = long_winded
    uncorrected = comparison.compare_rows(JUDGE, short, long)
    assert uncorrected.low > 0.1
    latest = latest_labels([labels], JUDGE.name)
    corrected = correct_comparison(JUDGE, uncorrected, short, long, latest)
    true_change = truth[1].mean() - truth[0].mean()
    assert corrected.low <= true_change <= corrected.high
    assert corrected.low < 0 < corrected.high
    assert corrected.estimator == "ppi"
    assert corrected.lower > corrected.low
    assert at_level(corrected, 0.025).lower == pytest.approx(corrected.low, abs=1e-9)
    score = correct_estimate(JUDGE, comparison.estimate(JUDGE, long), long, latest)
    assert score[:3] == pytest.approx((corrected.new, corrected.new_low, corrected.new_high))
    assert score.low <= truth[1].mean() <= score.high


def test_nothing_is_corrected_below_a_hundred_labels_of_both_answers_nor_without_a_judge(long_winded):
    (short, long), truth, _ = long_winded
    labels = latest_labels([label_arms((short, long), truth, 99)], JUDGE.name)
    uncorrected = comparison.compare_rows(JUDGE, short, long)
    assert correct_comparison(JUDGE, uncorrected, short, long, labels) == uncorrected
    assert labels_missing(JUDGE.name, labels, long) == 1
    exact = mean_metric("exact_match", lambda output, example: None)
    assert labels_missing(exact.name, {}, rows(np.ones(5))) == 0

    pick = draw_places(short, 105)
    labelled = [(short[i], truth[0][i]) for i in pick] + [(long[i], truth[1][i]) for i in pick[:99]]
    labels = latest_labels([label_set(JUDGE, labelled)], JUDGE.name)
    assert labels_missing(JUDGE.name, labels, short) == 0
    assert labels_missing(JUDGE.name, labels, short, long) == 1


def test_failed_answers_are_drawn_items_whose_worst_score_is_known(long_winded):
    (short, _), _, labels = long_winded
    latest = latest_labels([labels], JUDGE.name)
    failed = rows([None] * 200, JUDGE)
    some = [*short, *(replace(row, example_id=f"failed-{i}") for i, row in enumerate(failed))]
    whole = correct_estimate(JUDGE, comparison.estimate(JUDGE, short), short, latest)
    estimate = correct_estimate(JUDGE, comparison.estimate(JUDGE, some), some, latest)
    assert estimate.score == pytest.approx(whole.score * N / (N + 200), abs=0.03)
    assert estimate.n == N + 200
    assert estimate.high - estimate.low > (whole.high - whole.low) * N / (N + 200)
    assert labels_missing(JUDGE.name, latest, some) == 0


@pytest.mark.slow
def test_corrected_intervals_hold_the_truth_where_answers_failed():
    draw, draws = np.random.default_rng(14), 150
    pick = draw_places(rows(np.ones(500)), 200)
    hits = np.zeros(2)
    for _ in range(draws):
        truth, failed = draw.random((2, 500)) < 0.95, draw.random(500) < 0.2
        grades = np.where(draw.random((2, 500)) < 0.3, 1.0, truth)
        base, new = (answers(grade, np.full(500, 20), name) for grade, name in zip(grades, "ab", strict=True))
        new = [
            replace(row, status="error", text="", parts={JUDGE.name: None}) if none else row
            for row, none in zip(new, failed, strict=True)
        ]
        labelled = [(row[i], y[i]) for row, y in zip((base, new), truth, strict=True) for i in pick]
        labels = latest_labels([label_set(JUDGE, [(row, y) for row, y in labelled if row.text])], JUDGE.name)
        score = correct_estimate(JUDGE, Estimate(0, 0, 0, 500), new, labels)
        change = correct_comparison(JUDGE, fake_comparison(0.0), base, new, labels)
        assert change.estimator == "ppi"
        hits += score.low <= 0.76 <= score.high, change.low <= -0.19 <= change.high
    assert (hits / draws >= 0.92).all()


def test_a_label_counts_for_every_run_that_gave_the_answer_and_for_no_other_question(long_winded):
    (short, _), _, labels = long_winded
    changed_rows = [replace(row, text=row.text + "!") for row in short]
    facts = calibrate(JUDGE, {"short": short, "again": short, "other": changed_rows}, [], [labels])
    assert [(arm.name, arm.n_labels) for arm in facts.arms] == [("short", N_LABELS), ("again", N_LABELS)]
    latest = latest_labels([labels], JUDGE.name)
    for change in ({"prompt": "Is it NOT so?"}, {"references": ("no",)}):
        assert labels_missing(JUDGE.name, latest, [replace(row, **change) for row in short]) == 100


def test_no_label_counts_by_another_rubric_than_it_was_given_by(tmp_path):
    path, judge = tmp_path / "helpful.yaml", "judge: {base_url: http://localhost:1/v1, model: big}\n"
    task = Task(name="t", data=TaskData(), metrics=(f"judge:{path}", "exact_match"))
    path.write_text(f"criteria: It says when.\n{judge}")
    row = rows([1.0], JUDGE)[0]
    current = replace(label_set(JUDGE, [(row, 1.0)]), rubric=digest_question(task, JUDGE.name))
    before = label_set(JUDGE, [(row, 1.0)])
    other_metric = replace(before, metric="exact_match")
    assert current_labels([before, current, other_metric], task) == [current, other_metric]
    for changed in ("criteria: It is short.\n", "criteria: It says when.\nscale: {min: 1, max: 3}\n"):
        path.write_text(changed + judge)
        assert current_labels([before, current, other_metric], task) == [other_metric]


def test_labels_of_unchanged_answers_or_of_folds_correct_nothing(long_winded):
    (short, long), _, labels = long_winded
    # The judge likes nonsense on six items in ten; the others keep the labelled answer: 60 have a label.
    second = [row if i % 5 < 2 else replace(row, text=f"nonsense {i}") for i, row in enumerate(short)]
    second = [replace(row, parts={JUDGE.name: (1.0,)}) if row.text[0] == "n" else row for row in second]
    latest = latest_labels([labels], JUDGE.name)
    assert labels_missing(JUDGE.name, latest, second) > 90
    uncorrected = comparison.compare_rows(JUDGE, long, second)
    assert correct_comparison(JUDGE, uncorrected, long, second, latest) == uncorrected
    assert correct_estimate(JUDGE, estimate := comparison.estimate(JUDGE, second), second, latest) == estimate

    dealt = [replace(row, fold=i % 5 + 1) for i, row in enumerate(long)]
    uncorrected = comparison.compare_rows(JUDGE, short, dealt)
    assert correct_comparison(JUDGE, uncorrected, short, dealt, latest) == uncorrected
    assert correct_estimate(JUDGE, estimate := comparison.estimate(JUDGE, dealt), dealt, latest) == estimate
    assert calibrate(JUDGE, {"short": short, "long": dealt}, [("long", "short")], [labels]) is None


def test_a_judge_that_people_refute_on_test_does_not_choose_on_validation(long_winded):
    (short, long), _, labels = long_winded
    latest = latest_labels([labels], JUDGE.name)
    facts = [
        replace(candidate(name, 0.9 if name == "long" else 0.6), target=comparison.estimate(JUDGE, arm))
        for name, arm in (("short", short), ("long", long))
    ]
    assert best_untrained(facts) == "long"
    corrected = [correct_reached(JUDGE, f, arm, latest) for f, arm in zip(facts, (short, long), strict=True)]
    assert [f.validation for f in corrected] == pytest.approx(
        [v + c.target.score - f.target.score for v, c, f in zip((0.6, 0.9), corrected, facts, strict=True)]
    )
    assert corrected[1].validation < 0.85


def test_a_difference_whose_labels_or_answers_are_too_few_shows_nothing(long_winded):
    (short, long), _, labels = long_winded
    old, now = ([replace(row, cluster=f"c{i % 2}") for i, row in enumerate(arm)] for arm in (short, long))
    uncorrected = comparison.compare_rows(JUDGE, short, long)
    corrected = correct_comparison(JUDGE, uncorrected, old, now, latest_labels([labels], JUDGE.name))
    assert (corrected.low, corrected.high) == (-1, 1)
    assert "too few clusters" in corrected.refused

    error = {"status": "error", "parts": {JUDGE.name: None}}
    failed = [replace(row, **error) if i % 3 else row for i, row in enumerate(short)]
    uncorrected = comparison.compare_rows(JUDGE, failed, long)
    assert uncorrected.low > 0.2
    refused = refuse_failed(uncorrected, 1.0, 0.01)
    assert (refused.low, refused.high) == (-1, 1)
    assert "400 of 600 answers failed, more than the 1.0 % that gate.max_errors allows" in refused.refused
    facts = TargetFacts(comparison.estimate(JUDGE, long), refused)
    rule = target_rule(facts, GatePolicy(target=TargetPolicy(gain=0.05)))
    assert rule.outcome == "inconclusive"
    assert "answers failed" in rule.sentence


def test_the_latest_label_of_a_rater_counts_and_of_several_raters_the_mean():
    row = rows([1.0], JUDGE)[0]
    sets = [label_set(JUDGE, [(row, 0.0)]), label_set(JUDGE, [(row, 1.0)], at="2026-01-02")]
    assert latest_labels(sets, JUDGE.name) == {answer_digest(JUDGE.name, row): 1.0}
    assert latest_labels([*sets, label_set(JUDGE, [(row, 0.0)], "bob")], JUDGE.name) == {
        answer_digest(JUDGE.name, row): 0.5
    }
    assert latest_labels(sets, "judge:other") == {}


def test_sections_show_the_corrected_beside_the_uncorrected_and_are_read_back(long_winded, tmp_path):
    (short, long), _, labels = long_winded
    facts = calibrate(JUDGE, {"short": short, "long": long}, [("long", "short")], [labels])
    arms, pairs = label_sections([facts])
    assert arms.columns[:5] == (JUDGE.name, "labels", "uncorrected", "corrected", "labels alone")
    assert [row[0] for row in (*arms.rows, *pairs.rows)] == ["short", "long", "long − short"]
    document = ExperimentReport("x", "tiny", JUDGE.name, (make_fine_tune("lora", 0.7, 0.1),), labels=(facts,))
    report.write(document, tmp_path)
    assert report.read(tmp_path / "x.json").labels == document.labels


def test_a_judge_of_sixty_items_decides_once_each_that_has_a_grade_has_a_label():
    graded = answers(np.full(60, 0.9), np.arange(60) + 5, "short")
    votes = [(row, i % 2) for i, row in enumerate(graded)]
    assert labels_missing(JUDGE.name, latest_labels([label_set(JUDGE, votes[:40])], JUDGE.name), graded) >= 20
    labels = latest_labels([label_set(JUDGE, votes)], JUDGE.name)
    assert labels_missing(JUDGE.name, labels, graded) == 0
    estimate = correct_estimate(JUDGE, comparison.estimate(JUDGE, graded), graded, labels)
    assert estimate.score == pytest.approx(0.5)
    assert estimate.low < 0.4 < 0.6 < estimate.high
    failed = replace(graded[7], status="error", parts={JUDGE.name: None})
    ungraded = replace(graded[8], parts={JUDGE.name: None})
    arm = [*graded[:7], failed, ungraded, *graded[9:]]
    other_votes = [(row, i % 2) for i, row in enumerate(graded) if i not in (7, 8)]
    labels = latest_labels([label_set(JUDGE, other_votes)], JUDGE.name)
    assert labels_missing(JUDGE.name, labels, arm) == labels_missing(JUDGE.name, labels, arm, graded) == 0
    assert labels_missing(JUDGE.name, {}, [failed, ungraded]) == 2


LONG = """\
from harness.metrics import mean_metric


def metric(task):
    return mean_metric("judge_long", lambda output, example: float(len(output.text) > 12))
"""


@pytest.fixture(scope="module")
def judged_project(tiny, own_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    candidates = "  prompt: {method: base}\n  shots: {prompting: {few_shot: {select: fixed, shots: 2}}}\n"
    path = tiny_experiment.write(folder, tiny, candidates)
    (folder / "suites" / "judge_long.py").write_text(LONG)
    items = [
        {"id": f"t{i}", "prompt": f"=Letter {i}, where is it?", "reference": ("late", "money")[i % 2]}
        for i in range(130)
    ]
    tiny_experiment.rows(folder / "suites" / "letters" / "test.jsonl", items)
    suite = tiny_experiment.TARGET.replace("[exact_match, macro_f1]", "[./judge_long.py, bleu]").replace(
        "    labels: [late, money]\n", "    truncated_scores: true\n"
    )
    (folder / "suites" / "letters.yaml").write_text(suite)
    path.write_text(path.read_text().replace("suites: [suites/general.yaml]", "suites: []"))
    tiny_experiment.run(path)
    return folder


@pytest.fixture
def project(judged_project, tmp_path):
    shutil.copytree(judged_project, tmp_path / "project")
    return tmp_path / "project"


def read(file):
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


def write(file, written, delimiter=",", encoding="utf-8"):
    with file.open("w", encoding=encoding, errors="replace", newline="") as lines:
        writer = csv.DictWriter(lines, written[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(written)


BOTH = ("--candidates", "prompt,shots")


def rate(harness, project, n, label, *options, candidates=BOTH, form=()):
    harness("rate", "export", "labels.csv", "-n", n, *candidates, cwd=project, check=0)
    written = [{**row, "label": label(i)} for i, row in enumerate(read(project / "labels.csv"))]
    write(project / "labels.csv", written, *form)
    return written, harness("rate", "import", "labels.csv", *options, cwd=project, check=0)


def test_a_decision_waits_for_labels_and_goes_on_with_them(harness, project):
    refused = harness("decide", cwd=project, check=0)
    assert "judge_long is graded by a judge" in refused.stdout
    assert "harness rate export labels.csv" in refused.stdout
    by_ann = ("--rater", "ann")
    written, imported = rate(harness, project, 110, lambda i: i % 2, *by_ann, form=(";", "cp1252"))
    assert f"{len(written)} labels for judge_long by ann" in imported.stdout
    assert "shots: 110 of its answers have a label" in imported.stdout
    decided = harness("decide", cwd=project, check=0)
    assert "graded by a judge" not in decided.stdout
    brief = " ".join(harness("report", cwd=project, check=0).stdout.split())
    assert "corrected by people's labels; the report also has the judge's grades" in brief
    whole = " ".join(harness("report", "--verbose", cwd=project, check=0).stdout.split())
    assert "overrates it" in whole
    assert "kappa of judge_long with people" in whole


def test_a_file_to_rate_names_nobody_and_starts_no_formula(harness, project):
    harness("rate", "export", "labels.csv", *BOTH, cwd=project, check=0)
    text = (project / "labels.csv").read_text("utf-8-sig")
    assert "prompt" not in text
    assert "shots" not in text
    exported = read(project / "labels.csv")
    assert list(exported[0]) == ["key", "question", "answer", "reference", "label"]
    assert len({row["key"] for row in exported}) == len(exported)
    assert all(row["question"].startswith("'=Letter") for row in exported)
    questions = [row["question"] for row in exported]
    assert questions != sorted(questions)


def test_the_next_export_goes_on_where_labels_end(harness, project):
    harness("rate", "export", "one.csv", "-n", 40, *BOTH, cwd=project, check=0)
    harness("rate", "export", "same.csv", "-n", 40, *BOTH, cwd=project, check=0)
    assert (project / "one.csv").read_bytes() == (project / "same.csv").read_bytes()
    first, _ = rate(harness, project, 40, lambda i: "1")
    harness("rate", "export", "two.csv", "-n", 200, *BOTH, cwd=project, check=0)
    second = read(project / "two.csv")
    assert not {row["question"] for row in first} & {row["question"] for row in second}
    assert len({row["question"] for row in (*first, *second)}) == 130


def test_every_problem_of_a_file_is_listed_and_nothing_stored(harness, project):
    harness("rate", "export", "labels.csv", "-n", 10, *BOTH, cwd=project, check=0)
    written = [{**row, "label": "1"} for row in read(project / "labels.csv")]
    written[1]["label"], written[2]["label"], written[3]["key"] = "good", "1_0", "answer-0"
    write(project / "labels.csv", [*written, written[0]])
    result = harness("rate", "import", "labels.csv", cwd=project, check=2)
    for line, problem in (
        (3, "label 'good'"),
        (4, "label '1_0'"),
        (5, "key 'answer-0'"),
        (len(written) + 2, "a key of line 2 again"),
    ):
        assert f"labels.csv:{line}: found {problem}" in result.stderr
    assert store.list_labels(Store(project / "runs")) == []


def test_no_cell_starts_a_formula_and_what_stands_in_a_question_decides_nothing(tmp_path):
    assert [spreadsheet_lines(f"{sign}1") for sign in "=＝＋－＠"] == [f"'{sign}1" for sign in "=＝＋－＠"]
    assert spreadsheet_lines("a\u202eb\x00c\nd") == "abc\nd"
    file, columns = tmp_path / "labels.csv", label_file.COLUMNS
    write(file, [dict.fromkeys(columns, "") | {"question": "good, better, best?", "label": "1"}])
    assert not label_file.has_column(file, "better")
    write(file, [dict.fromkeys(columns, "") | {"label": "0", "note;x;y;z;w;v;u": ""}])
    assert list(label_file.read_rows(file, columns, ("key", "label"))) == [(2, ("", "0"))]
    file.write_text("key;better\n")
    assert label_file.has_column(file, "better")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("import", "empty.csv"), "no column key and label"),
        (("import", "blank.csv"), "found no label"),
        (("import", "blank.csv", "--scale", "0,inf"), "--scale"),
        (("import", "two.csv"), "more than one column label"),
        (("export", "blank.csv"), "a new name"),
        (("export", "new.txt"), "ends with .csv"),
        (("export", "new.csv", "--metric", "bleu"), "which is none"),
    ],
)
def test_what_cannot_be_rated_ends_with_2(harness, project, words, found):
    (project / "empty.csv").write_text("")
    (project / "blank.csv").write_text("key,label\nanswer-1,\n")
    (project / "two.csv").write_text("key,label,Label \nanswer-1,1,0\n")
    result = harness("rate", *words, cwd=project, check=2)
    assert found in result.stderr
    assert not (project / "new.csv").exists()


def export_pairs(harness, project, name, n, *options):
    result = harness("rate", "export", name, "--pairs", "-n", n, *BOTH, *options, cwd=project, check=0)
    return read(project / name), result


def texts_of(project):
    at = Store(project / "runs")
    runs = sorted(store.list_runs(at), key=lambda run: run.run_id)
    rows_of = [{row.example_id: row for row in store.read_rows(at, run.rows["letters/test"])} for run in runs]
    return runs, {item: (row.text, rows_of[1][item].text) for item, row in rows_of[0].items()}


def test_preferences_come_back_as_ratings_of_the_answer_that_was_meant(harness, project):
    written, exported = export_pairs(harness, project, "pairs.csv", 12)
    assert "12 pairs of answers" in exported.stdout
    assert list(written[0]) == ["key", "question", "left", "right", "reference", "better"]
    assert not any(name in (project / "pairs.csv").read_text("utf-8-sig") for name in ("prompt", "shots"))
    choices = ["left", "right", "Tie", ""]
    preferences = [{**row, "better": choices[i % 4]} for i, row in enumerate(written)]
    write(project / "back.csv", preferences, ";", "utf-8-sig")
    back = harness("rate", "import", "back.csv", "--rater", "ann", cwd=project, check=0)
    assert "9 preferences by ann, 3 rows left blank" in back.stdout
    runs, texts = texts_of(project)
    arms = [run.rows["letters/test"] for run in runs]
    ratings = store.list_ratings(Store(project / "runs"), "letters")
    assert len(ratings) == 9
    sides = pair_file._sides(config.load(project / "harness.yaml").experiment.target, *runs)
    of_key = {row["key"]: (row, choices[i % 4].lower()) for i, row in enumerate(written)}
    for rating in ratings:
        row, word = of_key[pair_file._key(sides, human_preferences.Turn(rating.example_id, rating.left))]
        left, right = texts[rating.example_id] if rating.left == "a" else texts[rating.example_id][::-1]
        assert (row["left"], row["right"]) == (spreadsheet_lines(left), spreadsheet_lines(right))
        other_side = "b" if rating.left == "a" else "a"
        assert rating.choice == {"left": rating.left, "right": other_side, "tie": "tie"}[word]
    assert set(human_preferences.map_preference_shares(ratings, *arms).values()) <= {0.0, 0.5, 1.0}
    again, _ = export_pairs(harness, project, "more.csv", 200)
    rated = {row["key"] for i, row in enumerate(written) if choices[i % 4]}
    assert not rated & {row["key"] for row in again}  # the export continues after the rated pairs


def test_sides_are_drawn_and_the_longer_prompt_is_not_shown(project):
    path = project / "harness.yaml"
    export = pair_file.export_pairs(path, project / "all.csv", n_items=200, candidates=("prompt", "shots"))
    written, (_, texts) = read(project / "all.csv"), texts_of(project)
    firsts = [row["left"] in {a for a, _ in texts.values()} for row in written]
    assert export["n_pairs"] == len(written) > 20
    assert 0 < sum(firsts) < len(firsts)
    assert all("Letter" in row["question"] and row["question"].count("Letter") == 1 for row in written)


def test_raters_who_disagree_on_one_answer_leave_the_agreement_on_the_others(long_winded):
    (short, _), _, labels = long_winded
    before = calibrate(JUDGE, {"short": short}, [], [labels]).arms[0]
    first, *others = labels.labels
    bob = replace(labels, rater="bob", labels=(replace(first, label=1 - first.label), *others))
    facts = calibrate(JUDGE, {"short": short}, [], [labels, bob])
    after = facts.arms[0]
    assert (before.n_split, after.n_split) == (0, 1)
    assert sum(after.confusion) == sum(before.confusion) - 1
    assert after.rogan_gladen is not None
    assert "1 answer with equally many yes and no is left out" in " ".join(label_sentences(facts))
    stars = replace(bob, labels=tuple(replace(x, label=0.5) for x in bob.labels))
    assert calibrate(JUDGE, {"short": short}, [], [stars]).arms[0].agreement is None
