"""Several targets of one training, one of which decides; and a target of whole texts."""

import json

import pytest
import tiny_experiment
from tiny_experiment import rows

from harness.config import load
from harness.errors import UserError
from harness.evaluation.candidates import base_weights
from harness.evaluation.row_sets import list_further_sets
from harness.experiment import Scope, compare, prepare_session
from harness.progress import SilentProgress
from harness.report import experiment_document, markdown, read, to_json

pytestmark = pytest.mark.usefixtures("own_cache")


CANDIDATES = """\
  prompt: {method: base}
  shots: {prompting: {few_shot: {select: fixed, shots: 2}}}
  ranked: {answer: rank}
  bag: {method: classifier}
  reader: {prompting: {rag: {top_k: 1}}}
  lora: {method: lora, params: {r: 2, max_steps: 1, max_length: 250}}
"""
LETTERS = "documents: letters/documents.jsonl, train: letters/train.jsonl"
MOODS = """\
name: moods
tasks:
  - name: moods
    data: {train: moods/train.jsonl, validation: moods/validation.jsonl, test: moods/test.jsonl}
    system: Say whether the writer is glad or cross.
    max_new_tokens: 4
"""


def moods(names):
    return [
        {
            "id": f"{name}-{mood}",
            "prompt": f"{name} {says}. How is {name}?",
            "reference": mood,
            "cluster": name,
        }
        for name in names
        for mood, says in (("glad", "laughs"), ("cross", "slams the door"))
    ]


def write(folder, tiny, extra="more_targets: [suites/moods.yaml]\n"):
    path = tiny_experiment.write(folder, tiny, CANDIDATES, extra=extra)
    suites = folder / "suites"
    letters = (suites / "letters.yaml").read_text().replace("train: letters/train.jsonl", LETTERS)
    (suites / "letters.yaml").write_text(letters)
    tiny_experiment.rows(
        suites / "letters" / "documents.jsonl", [{"id": "depot", "text": "The depot is late."}]
    )
    (suites / "moods.yaml").write_text(MOODS)
    (suites / "moods").mkdir()
    parts = {"train": ("Ada", "Bo"), "validation": ("Cy",), "test": ("Di", "Ed", "Flo")}
    for part, names in parts.items():
        tiny_experiment.rows(suites / "moods" / f"{part}.jsonl", moods(names))
    return path


@pytest.fixture(scope="module")
def file_and_reports(tiny, own_cache, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("targets"), tiny)
    full_text = path.read_text()
    results = []
    for text in (full_text.replace("more_targets: [suites/moods.yaml]\n", ""), full_text, full_text):
        path.write_text(text)
        report = tiny_experiment.run(path, "suites=[]")
        results.append((report, tiny_experiment.runs_of(path), sorted(folders(path, "weights"))))
    return path, results


def folders(path, kind):
    return [folder.name for folder in (path.parent / "runs" / kind).iterdir()]


def scores(report):
    return {f.name: {target.task: target for target in f.more_targets} for f in report.facts}


def test_one_training_is_measured_on_two_targets_and_a_target_added_leaves_the_first(file_and_reports):
    _, ((_, single, weights), (report, double, weights_after), _) = file_and_reports
    score = scores(report)["lora"]["moods"]
    assert (score.metric, score.score.n, score.vs_untrained.n) == ("exact_match", 6, 6)
    assert weights == weights_after
    assert len(weights) == 2  # the classifier's and the LoRA's weights
    assert single["lora"].weights_digest == double["lora"].weights_digest

    _, ((first_report, single, _), (report, double, _), (_, rerun, _)) = file_and_reports
    assert {name: run.run_id for name, run in double.items()} == {n: run.run_id for n, run in rerun.items()}
    assert single["lora"].rows.items() <= double["lora"].rows.items()
    assert double["lora"].rows.keys() - single["lora"].rows.keys() == {"moods/test", "moods/validation"}
    assert report.decision.sentence == first_report.decision.sentence
    assert [f.verdict for f in report.facts] == [f.verdict for f in first_report.facts]


def test_each_candidate_is_compared_with_the_best_on_a_further_target_which_decides_nothing(
    file_and_reports, tmp_path
):
    report = file_and_reports[1][1][0]
    scores_of = {name: targets["moods"] for name, targets in scores(report).items() if targets}
    (best,) = {score.untrained for score in scores_of.values()}
    assert best in {"prompt", "shots"}
    assert scores_of[best].vs_untrained is None
    assert scores_of["lora"].vs_untrained.delta == pytest.approx(
        scores_of["lora"].score.score - scores_of[best].score.score
    )

    text = markdown(experiment_document(report))
    section = text.split("More targets")[1].split("\n## ")[0]
    assert "neither the gate nor the decision looks at them" in section
    assert "| moods (exact_match) | lora |" in section.replace("\\_", "_")
    (tmp_path / "one.json").write_text(json.dumps(to_json(report)))
    assert scores(read(tmp_path / "one.json")) == scores(report)


def test_each_target_has_its_own_shots_and_leaves_out_who_lacks_what_it_has(file_and_reports):
    """The target has no documents and no label set, and no classifier was trained on it."""
    left_out = {name for name, targets in scores(file_and_reports[1][1][0]).items() if not targets}
    assert left_out == {"reader", "ranked", "bag"}

    session = prepare_session(load(file_and_reports[0], ["suites=[]"]), Scope(), SilentProgress())
    candidate = session.candidates["shots"]
    _, test = list_further_sets(session, candidate.recipe, base_weights(candidate.base), 0)
    system, *shots, _ = test.examples()[0].messages
    assert system["content"] == "Say whether the writer is glad or cross."
    assert {turn["content"].split()[0] for turn in shots if turn["role"] == "user"} <= {"Ada", "Bo"}


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("more_targets: [suites/letters.yaml]\n", "a second task 'letters'"),
        ("more_targets: [suites/general.yaml]\n", "3 tasks"),
        ("more_targets: [{lm_eval: piqa}]\n", "a task of lm-eval, as a target"),
        ("more_targets: [suites/moods.yaml]\ngate: {critical: [moods]}\n", "unknown task or suite 'moods'"),
    ],
)
def test_what_is_no_target_is_refused_with_its_line(tmp_path, tiny, written, found):
    path = write(tmp_path, tiny, extra=written)
    with pytest.raises(UserError, match=r"harness.yaml:|moods.yaml:|letters.yaml:|general.yaml:") as error:
        load(path)
    assert found in str(error.value)


def test_training_rows_that_ask_an_item_of_another_target_are_refused(tmp_path, tiny):
    path, leaked_rows = write(tmp_path, tiny), moods(["Di"])
    train_file = path.parent / "suites" / "letters" / "train.jsonl"
    train_file.write_text(train_file.read_text() + json.dumps({**leaked_rows[0], "reference": "late"}) + "\n")
    with pytest.raises(UserError, match="moods"):
        tiny_experiment.run(path, "suites=[]")


HARNESS = """\
name: texts
base_model: {model}
precision: fp32
suites: []
target: {{name: prose, kind: bits_per_byte, data: {data}, metrics: [bits_per_byte]}}
candidates:
"""


def experiment(folder, model, candidates, data="{train: train.jsonl, test: test.jsonl}"):
    for name in ("train", "validation", "test"):
        rows(folder / f"{name}.jsonl", [{"text": f"The sea of {name} {i} is deep."} for i in range(8)])
    path = folder / "harness.yaml"
    path.write_text(HARNESS.format(model=model, data=data) + candidates)
    return path


LORA = "  lora: {method: lora, params: {r: 4, learning_rate: 1.0e-2, num_train_epochs: 4}}\n"


@pytest.mark.e2e
def test_a_fine_tune_on_texts_is_held_to_its_base_in_bits_per_byte(tiny, tmp_path):
    report = compare(experiment(tmp_path, tiny, "  prompt: {method: base}\n" + LORA))
    prompt, lora = report.facts
    assert (prompt.state, lora.state) == ("done", "done")
    assert 0 < lora.target.score < prompt.target.score
