"""Evaluated rows: prompt, answer, status and score of each item, also of those that failed."""

import math
from dataclasses import replace

import pytest
from fake_rows import script_candidate

from harness import store
from harness.errors import UserError
from harness.evaluation import EvaluationJob, evaluate_block, put_in_order, wrap_prompt
from harness.metrics import load_metrics, mean_metric
from harness.models.candidate import TextCandidate, TextTable
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.records import BLOCK, Example, Limits, RowsIdentity
from harness.spec import Task

IDENTITY = RowsIdentity("w", "t", "task", "v", "test", "p", "generate", "fp32", "e", "l", "cpu")
SORRY = "I'm sorry, but I can't help with that."


def example(number=0, prompt="", reference="yes", **fields):
    messages = ({"role": "user", "content": prompt or f"question {number}"},)
    return Example(f"item-{number}", messages, (reference,), **fields)


def job_of(*examples, role="target", answer="generate", **fields):
    task = Task(name="task", data={}, **fields)
    return EvaluationJob(task, role, "test", examples, load_metrics(task), answer, IDENTITY)


def rows(candidate, *examples, **fields):
    return evaluate_block(candidate, job_of(*examples, **fields), 0)


def row(candidate, item, **fields):
    return rows(candidate, item, **fields)[0]


@pytest.fixture(scope="module")
def base(tiny, own_cache):
    return ModelHost(resolve(str(tiny)), Machine("cpu", "CPU", "fp32", 1.0)).base


@pytest.mark.parametrize(("n", "blocks"), [(1, 1), (BLOCK, 1), (BLOCK + 1, 2)])
def test_items_are_cut_into_blocks_of_one_size(n, blocks):
    job = job_of(*map(example, range(n)))
    assert job.n_blocks == blocks
    rows_by_block = [evaluate_block(script_candidate(str.upper), job, i) for i in range(blocks)]
    assert [len(block) for block in rows_by_block] == [BLOCK] * (blocks - 1) + [n - BLOCK * (blocks - 1)]
    assert [r.position for block in rows_by_block for r in block] == list(range(n))


def test_the_order_is_a_shuffle_by_the_version_alone_and_no_block_depends_on_another(base):
    examples = [example(n) for n in range(30)]
    first, again, other_version = (put_in_order(examples, version) for version in ("ab12", "ab12", "ab13"))
    assert first == again != other_version
    assert sorted(e.id for e in first) == sorted(e.id for e in examples) != [e.id for e in first]

    job = job_of(*map(example, range(66)), max_new_tokens=2)
    alone, _, after = ([(r.example_id, r.text) for r in evaluate_block(base, job, n)] for n in (1, 0, 1))
    assert after == alone


@pytest.mark.parametrize(
    ("answer", "fields", "status", "score"),
    [
        ("Yes.", {}, "ok", 1.0), ("no", {}, "ok", 0.0), ("", {}, "unparsable", 0.0),
        (" \n", {}, "unparsable", 0.0), (SORRY, {}, "refused", 0.0), (SORRY, {"role": "safety"}, "ok", 0.0),
    ],
)  # fmt: skip
def test_an_answer_has_its_status_and_score(answer, fields, status, score):
    sample = row(script_candidate(lambda _: answer), example(), **fields)
    assert (sample.status, sample.parts, sample.text) == (status, {"exact_match": (score,)}, answer)


def test_an_answer_outside_the_closed_set_is_unparsable():
    answers = {"question 0": "NO.", "question 1": "perhaps"}
    closed_items = [example(n, choices=("yes", "no"), reference="no") for n in range(2)]
    samples = rows(script_candidate(answers.get), *closed_items)
    assert [(r.status, r.parts["exact_match"]) for r in samples] == [("ok", (1.0,)), ("unparsable", (0.0,))]
    closed_item = example(choices=("yes", "no"), reference="no")
    sample = row(
        script_candidate(lambda _: "No, I think."), closed_item, metrics=("label_in_answer", "exact_match")
    )
    assert (sample.status, sample.parts) == ("unparsable", {"label_in_answer": (1.0,), "exact_match": (0.0,)})
    empty_row = row(script_candidate(lambda _: " "), closed_item, metrics=("label_in_answer",))
    assert empty_row.parts == {"label_in_answer": (0.0,)}


def test_an_answer_cut_at_the_limit_is_truncated_and_scores_worst_unless_the_task_says_otherwise(base):
    answer = base.generate([base.encode(example().messages).context], Limits(1))[0].text
    entry = row(base, example(reference=answer), max_new_tokens=1)
    assert (entry.status, entry.parts["exact_match"], entry.finish_reason) == ("truncated", (0.0,), "length")
    entry = row(base, example(reference=answer), max_new_tokens=1, truncated_scores=True)
    assert (entry.status, entry.parts["exact_match"]) == ("truncated", (1.0,))


@pytest.mark.parametrize("metric", ["json_fields", "rouge"])
def test_an_item_that_the_metric_does_not_read_has_no_score_whatever_is_answered(metric):
    answers = {"question 0": "", "question 1": SORRY, "question 2": "да"}
    unread_items = [example(n, reference="!!") for n in range(3)]
    scored_rows = rows(script_candidate(answers.get), *unread_items, metrics=[metric])
    expected = [("unparsable", None), ("refused", None), ("ok", None)]
    assert [(r.status, r.parts[metric]) for r in scored_rows] == expected


def test_a_prompt_text_or_choice_that_does_not_fit_is_an_error_without_a_score(base):
    long_prompt = example(1, prompt="parcel " * 300)
    scored_rows = rows(base, example(0), long_prompt, example(2), max_new_tokens=2)
    assert [r.status for r in scored_rows] == ["truncated", "error", "truncated"]
    assert scored_rows[1].parts == {"exact_match": None}
    assert "the context holds 254" in scored_rows[1].error
    assert scored_rows[1].n_prompt_tokens > 256
    room = base.max_context - len(base.encode(example().messages, chat_template=False).context)
    long_choice = example(choices=("yes", "x " * room))
    scored_row = row(base, long_choice, kind="choice", metrics=("accuracy",), chat_template=False)
    assert (scored_row.status, scored_row.parts) == ("error", {"accuracy": None})
    long_text = Example("long", (), ("x " * 300,))
    short_text = Example("short", (), ("A red fox.",))
    text_rows = rows(base, long_text, short_text, kind="bits_per_byte", metrics=("bits_per_byte",))
    assert [r.status for r in text_rows] == ["error", "ok"]
    assert text_rows[0].parts == {"bits_per_byte": None}


def table(**logprobs):
    """Return a candidate that gives every text these log-probabilities."""
    text_table = TextTable(tuple(logprobs), tuple(logprobs.values()))
    return TextCandidate(lambda texts: [text_table] * len(texts), "table")


def test_items_with_choices_are_ranked_under_rank_and_by_the_byte_where_the_task_says_so():
    closed_item, free_item = example(0, choices=("yes", "no")), example(1)
    ranked_rows = rows(table(no=-0.1, yes=-2.3), closed_item, free_item, answer="rank")
    assert [(r.finish_reason, r.text) for r in ranked_rows] == [("ranked", "no"), ("stop", "no")]

    item = example(reference="a", choices=("a", "abcd"))
    for normalized, text in ((False, "a"), (True, "abcd")):
        ranked_row = row(table(a=-2.0, abcd=-3.0), item, kind="choice", length_normalized=normalized)
        assert ranked_row.text == text


@pytest.mark.parametrize("chat", [True, False])
def test_a_choice_task_scores_the_likeliest_choice_and_keeps_the_margin(chat):
    fields = {"kind": "choice", "metrics": ("accuracy",), "chat_template": chat}
    right_row = row(table(yes=-1.0, no=-3.0), example(choices=("no", "yes")), **fields)
    wrong_row = row(table(yes=-3.0, no=-1.0), example(choices=("no", "yes")), **fields)
    assert (right_row.text, right_row.parts["accuracy"], right_row.margin) == ("yes", (1.0,), 2.0)
    assert (wrong_row.text, wrong_row.parts["accuracy"], wrong_row.margin) == ("no", (0.0,), -2.0)
    assert (right_row.gold_logprob, right_row.gold_bytes, right_row.status) == (-1.0, 3, "ok")


def test_ranking_by_a_model_takes_the_sum_of_the_choices_tokens(base):
    item = example(prompt="The desk answers with", reference="money", choices=("late", "money"))
    ranked_row = row(base, item, kind="choice", metrics=("accuracy",), chat_template=False)
    encoded = [base.encode(item.messages, f" {c}", chat_template=False) for c in item.choices]
    logprobs = [base.loglikelihood([e[:2]])[0].logprob for e in encoded]
    assert ranked_row.gold_logprob == pytest.approx(logprobs[1], abs=1e-4)
    assert ranked_row.margin == pytest.approx(logprobs[1] - logprobs[0], abs=1e-4)
    assert ranked_row.text == item.choices[logprobs[1] > logprobs[0]]


def test_bits_per_byte_and_perplexity_are_those_computed_by_hand_over_bytes_of_utf_8(base):
    import torch

    text = "Where is the parcel that I paid for?"
    metrics = ("bits_per_byte", "perplexity")
    item = Example("text", (), (text,))
    sample = row(base, item, kind="bits_per_byte", metrics=metrics, max_new_tokens=1)
    ids = torch.tensor([[base.tokenizer.bos_token_id, *base.tokenizer(text)["input_ids"]]])
    with torch.inference_mode():
        loss = base.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    bits, n_bytes = sample.parts["bits_per_byte"]
    assert sample.parts["perplexity"] == (pytest.approx(loss, abs=1e-3), ids.shape[1] - 1)
    assert bits == pytest.approx(loss / math.log(2), abs=1e-3)
    assert n_bytes == len(text)
    assert sample.status == "ok"
    sample = row(base, Example("text", (), ("Übergröße",)), kind="bits_per_byte", metrics=("bits_per_byte",))
    assert sample.gold_bytes == len("Übergröße".encode()) == 12


def test_the_system_message_stands_first_and_the_template_wraps_the_last_turn():
    shots = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    item = Example("x", (*shots, {"role": "user", "content": "c {d}"}), ("e",))
    wrapped = wrap_prompt(item, "Be brief.", "Q: {prompt}\nA:")
    system, last = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q: c {d}\nA:"}
    assert wrapped.messages == (system, *shots, last)
    assert wrap_prompt(example(), "", None).messages[0] == {"role": "system", "content": ""}
    assert wrap_prompt(example(), None, None) == example()
    text = Example("text", (), ("A red fox.",))
    assert wrap_prompt(text, "Be brief.", "Q: {prompt}") == text
    own_turn = {"role": "system", "content": "You sell lamps."}
    system_item = replace(example(), messages=(own_turn, *example().messages))
    messages = wrap_prompt(system_item, "Be brief.", None).messages
    assert [turn["role"] for turn in messages] == ["system", "user"]
    assert messages[0]["content"] == "Be brief.\n\nYou sell lamps."
    assert wrap_prompt(system_item, "", None) == system_item


def test_a_row_keeps_its_passages_with_their_recall_and_digests_of_what_was_asked_and_answered():
    item = example(documents=("d1", "d2"), passages=("d2", "d9"))
    scored_row = row(script_candidate(lambda _: "yes"), item)
    assert (scored_row.passages, scored_row.recall) == (("d2", "d9"), 0.5)
    first, same, other = (row(script_candidate(str.upper), example(prompt=p)) for p in ("one", "one", "two"))
    assert (first.prompt_digest, first.output_digest) == (same.prompt_digest, same.output_digest)
    assert first.prompt_digest != other.prompt_digest
    assert first.output_digest != other.output_digest


def evaluate_own_metric(score, **bounds):
    """Evaluate one item with exact_match and an own metric that returns this score."""
    job = job_of(example(7))
    own_metric = mean_metric("own", lambda output, example: score, **bounds)
    job_of_both = replace(job, metrics={**job.metrics, "own": own_metric})
    return evaluate_block(script_candidate(lambda text: "yes"), job_of_both, 0)[0]


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_is_no_number_is_none_and_the_row_says_of_which_metric_and_item(score, tmp_path):
    scored_row = evaluate_own_metric(score, bounds=(-math.inf, math.inf))
    assert (scored_row.status, scored_row.parts) == ("ok", {"exact_match": (1.0,), "own": None})
    assert scored_row.error == "metric own: found NaN or infinity for item item-7; expected a finite score"
    store.append_block(store.Store(tmp_path), IDENTITY, 0, [scored_row])


@pytest.mark.parametrize("score", [1.5, -0.01])
def test_a_score_out_of_its_metrics_bounds_is_refused_with_metric_item_and_bounds(score):
    problem = rf"metric own: found a score of {score} \(item item-7\); expected 0 to 1"
    with pytest.raises(UserError, match=problem):
        evaluate_own_metric(score)


def test_an_error_of_a_metric_is_refused_with_metric_and_item():
    with pytest.raises(UserError, match=r"task .*: metric own: found ValueError: .*'x' \(item item-7\)"):
        evaluate_own_metric("x")
