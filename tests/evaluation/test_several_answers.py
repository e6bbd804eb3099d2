"""Several answers to an item: drawn by seeds of their own, settled without the reference, shown as pass@k."""

from dataclasses import replace

import pytest
import tiny_experiment

from harness import config, store
from harness.analysis import comparison
from harness.analysis.answers import several_answers
from harness.errors import UserError
from harness.evaluation import EvaluationJob, evaluate_block
from harness.evaluation.candidates import base_weights
from harness.evaluation.row_sets import target_sets
from harness.evaluation.runner import fill
from harness.evaluation.sampled_answers import seed_of, settle
from harness.evaluation.stored_scores import rescore_stored
from harness.metrics import load_metrics, normalize
from harness.models.candidate import TextCandidate
from harness.records import Example, Output, RowsIdentity, Sample
from harness.spec import Decoding, Task

pytestmark = pytest.mark.usefixtures("own_cache")

IDENTITY = RowsIdentity("w", "t", "task", "v", "test", "p", "generate", "fp32", "e", "l", "cpu", decoding="d")
WORDS = ("late", "money", "Late.", "neither")


class SeedCandidate(TextCandidate):
    """Answers by the seed alone, with one of four words, and counts the questions."""

    def __init__(self):
        super().__init__(lambda texts: [], "drawing")
        self.asked: list[tuple[float, int]] = []

    def generate(self, prompts, limits, seeds=()):
        self.asked += [(limits.temperature, seed) for seed in seeds]
        return [
            Output(WORDS[seed % 4], n_prompt_tokens=5, n_output_tokens=2, compute_s=0.1) for seed in seeds
        ]


def job_of(n=3, metrics=("exact_match",), **decoding):
    task = Task(name="task", data={}, metrics=metrics, labels=("late", "money"))
    examples = tuple(
        Example(f"i{k}", ({"role": "user", "content": f"Q{k}"},), ("late",), ("late", "money"))
        for k in range(n)
    )
    sampling = Decoding(temperature=0.7, **decoding)
    return EvaluationJob(task, "target", "test", examples, load_metrics(task), "generate", IDENTITY, sampling)


def words_of(item, n):
    return [WORDS[seed_of(item, k) % 4] for k in range(n)]


# Drawing


def test_each_answer_is_drawn_by_its_seed_and_the_first_counts_by_the_mean_of_all():
    candidate = SeedCandidate()
    rows = evaluate_block(candidate, job_of(samples=6), 0)
    assert [[s.text for s in row.samples] for row in rows] == [words_of(f"i{k}", 6) for k in range(3)]
    assert {temperature for temperature, _ in candidate.asked} == {0.7}
    assert len(set(candidate.asked)) == 18
    row, *_ = evaluate_block(SeedCandidate(), job_of(samples=8), 0)
    words = words_of("i0", 8)
    assert row.text == words[0]
    n_right = sum(normalize(word) == "late" for word in words)
    assert row.parts["exact_match"] == (pytest.approx(n_right / 8),)
    assert (row.n_prompt_tokens, row.n_output_tokens) == (40, 16)
    assert row.compute_s == pytest.approx(0.8)


def test_a_base_draws_the_same_answers_again_and_says_how_likely_they_are(tiny):
    from harness.models.hardware import Machine
    from harness.models.hf import ModelHost
    from harness.models.hub import resolve

    base = ModelHost(resolve(str(tiny)), Machine("cpu", "CPU", "fp32", 1.0)).base
    job = job_of(2, samples=3, choose="best", by="mean_logprob")
    task = job.task.model_copy(update={"labels": (), "max_new_tokens": 3})
    examples = tuple(replace(e, choices=()) for e in job.examples)
    job = replace(job, task=task, examples=examples)
    rows = evaluate_block(base, job, 0)
    assert [[s.text for s in row.samples] for row in rows] == [
        [s.text for s in row.samples] for row in evaluate_block(base, job, 0)
    ]
    for row, example in zip(rows, examples, strict=True):
        assert len({s.text for s in row.samples}) > 1
        for answer in row.samples:
            pair = base.encode(example.messages, answer.text)
            (score,) = base.loglikelihood([(pair.context, pair.continuation)])
            assert answer.mean_logprob == pytest.approx(score.logprob / len(pair.continuation), abs=1e-4)
        able = [s for s in row.samples if s.status == "ok"] or row.samples
        assert row.text == max(able, key=lambda s: s.mean_logprob).text


# Settling


def sample(index, text, score=0.0, status="ok", **fields):
    return Sample(index, text, status, {"m": (score,)}, **fields)


MAJORITY = Decoding(temperature=1, samples=4, choose="majority")


def test_the_majority_is_counted_over_equal_answers_that_did_not_fail():
    samples = [sample(0, "money"), sample(1, "Late."), sample(2, "late"), sample(3, "neither")]
    assert settle(samples, MAJORITY, normalize, {}).index == 1
    samples = [sample(0, "b"), sample(1, "a"), sample(2, "a"), sample(3, "b")]
    assert settle(samples, MAJORITY, normalize, {}).index == 0
    samples = [sample(0, "", status="unparsable"), sample(1, "", status="unparsable"), sample(2, "late")]
    assert settle(samples, MAJORITY, normalize, {}).text == "late"
    (metric,) = load_metrics(Task(name="t", data={}, metrics=("json_fields",))).values()
    samples = [
        sample(0, '{"a": 2}'),
        sample(1, '{"a": 1, "b": 2}'),
        sample(2, '```json\n{"b": 2, "a": 1.0}\n```'),
    ]
    assert settle(samples, MAJORITY, metric.same, {}).index == 1


def test_an_item_is_incomplete_where_some_answers_failed_and_an_error_where_all_did():
    samples = [
        replace(sample(0, "", status="error", error="too long"), parts={"m": None}),
        sample(1, "a", 1.0),
        sample(2, "b", 0.0),
    ]
    result = settle(samples, Decoding(temperature=1, samples=3), normalize, {"m": (0.0,)})
    assert (result.status, result.text, result.parts) == ("incomplete", "a", {"m": (pytest.approx(1 / 3),)})
    assert result.error == "1 of 3 answers failed: too long"
    failed = replace(sample(0, "", status="error", error="too long"), parts={"m": None})
    samples = [failed, sample(1, "late", 1.0), sample(2, "late", 1.0), failed]
    result = settle(samples, MAJORITY, normalize, {"m": (0.0,)})
    assert (result.status, result.parts) == ("incomplete", {"m": (1.0,)})
    failed = [replace(sample(k, "", status="error", error="too long"), parts={"m": None}) for k in range(4)]
    for decoding in (MAJORITY, Decoding(temperature=1, samples=4)):
        result = settle(failed, decoding, normalize, {"m": (0.0,)})
        assert (result.status, result.parts) == ("error", {"m": None})


class FailingCandidate(SeedCandidate):
    """Fails on the answers whose seed is divisible by 4."""

    def generate(self, prompts, limits, seeds=()):
        outputs = super().generate(prompts, limits, seeds)
        late = Output("", "error", error="too long")
        return [late if seed % 4 == 0 else output for seed, output in zip(seeds, outputs, strict=True)]


@pytest.mark.parametrize("metric", ["exact_match", "macro_f1"])
def test_failed_answers_lower_the_score_and_are_counted_with_their_item(metric):
    job = job_of(8, metrics=(metric,), samples=4)
    rows = evaluate_block(FailingCandidate(), job, 0)
    failed = [sum(seed_of(row.example_id, k) % 4 == 0 for k in range(4)) for row in rows]
    right = [sum(seed_of(row.example_id, k) % 4 == 2 for k in range(4)) for row in rows]
    estimate = comparison.estimate(job.metrics[metric], rows)
    assert estimate.n_errors == sum(map(bool, failed)) > 0
    if metric == "exact_match":
        assert estimate.score == pytest.approx(sum(right) / 32)
        (at_one, *_) = several_answers(
            job.metrics[metric], rows, {row.example_id: row.samples for row in rows}
        ).passes
        assert at_one.estimate.score == pytest.approx(estimate.score)


# What is refused


DRAWN = "temperature: 1, samples: 4"
CHAT = "method: endpoint, params: {base_url: http://localhost:1/v1, model: m, protocol: chat}"
RUBRIC = "criteria: Short.\njudge: {base_url: http://localhost:1/v1, model: m}\n"


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (f"answer: rank, decoding: {{{DRAWN}}}", "answer: rank, which draws nothing"),
        (f"method: classifier, decoding: {{{DRAWN}}}", "answers with a label"),
        (f"{CHAT}, decoding: {{{DRAWN}, choose: best, by: mean_logprob}}", "protocol: completions"),
        (f"decoding: {{{DRAWN}, choose: best, by: 'judge:./other.yaml'}}", "none of the target's metrics"),
        (f"decoding: {{{DRAWN}, choose: best, by: 'judge:./primary.yaml'}}", "is the primary metric"),
        (f"decoding: {{{DRAWN}, choose: best, by: 'judge:./gold.yaml'}}", "shows the judge the reference"),
        (f"decoding: {{{DRAWN}, choose: best, by: exact_match}}", "needs the reference, and no user has it"),
        (f"decoding: {{{DRAWN}, choose: best, by: bag}}", "whose method classifier makes no reward model"),
    ],
)
def test_a_candidate_whose_decoding_cannot_be_is_refused(tiny, tmp_path, recipe, said):
    path = tiny_experiment.write(tmp_path, tiny, f"  bag: {{method: classifier}}\n  one: {{{recipe}}}\n")
    target = tmp_path / "suites" / "letters.yaml"
    judges = "metrics: ['judge:./primary.yaml', 'judge:./gold.yaml', exact_match, macro_f1]"
    target.write_text(target.read_text().replace("metrics: [exact_match, macro_f1]", judges))
    (tmp_path / "suites" / "primary.yaml").write_text(RUBRIC)
    (tmp_path / "suites" / "gold.yaml").write_text(RUBRIC + "reference: true\n")
    with pytest.raises(UserError, match=said):
        config.load(path)


# In a store


def sets_of(session):
    recipe, weights = session.experiment.candidates["one"], base_weights(session.source)
    return target_sets(session, recipe, weights, 0)


def test_another_choice_among_stored_answers_asks_no_model(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, f"  one: {{decoding: {{{DRAWN}}}}}\n")
    first = tiny_experiment.session(path)
    fill(first, SeedCandidate(), sets_of(first), "one")
    changed = tiny_experiment.session(path, "candidates.one.decoding.choose=majority")
    assert rescore_stored(changed, sets_of(changed)) == []
    for old, new in zip(sets_of(first), sets_of(changed), strict=True):
        before, after = (store.read_rows(first.store, s.identity.digest) for s in (old, new))
        draws = [store.read_drawn(first.store, s.identity.digest) for s in (old, new)]
        assert draws[0] == draws[1]
        assert len(draws[0]) == len(before) == len(after)
        words = [[answer.text for answer in draws[0][row.example_id]] for row in after]
        votes = [[w for w in texts if w in ("late", "money", "Late.")] for texts in words]
        assert all(row.text in texts for row, texts in zip(after, words, strict=True) if texts)
        assert [row.text for row in after] == [
            max(v, key=lambda w, v=v: [normalize(x) for x in v].count(normalize(w))) if v else all_[0]
            for v, all_ in zip(votes, words, strict=True)
        ]
    larger = tiny_experiment.session(path, "candidates.one.decoding.samples=5")
    assert len(rescore_stored(larger, sets_of(larger))) == 2, "more answers have to be drawn"
