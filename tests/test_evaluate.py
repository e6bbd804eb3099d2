"""Rows say what was asked, what came back and what it scores; a failed sample is a row too."""

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


def row(candidate, one, **fields):
    return rows(candidate, one, **fields)[0]


@pytest.fixture(scope="module")
def base(tiny, own_cache):
    return ModelHost(resolve(str(tiny)), Machine("cpu", "CPU", "fp32", 1.0)).base


@pytest.mark.parametrize(("n", "blocks"), [(1, 1), (BLOCK, 1), (BLOCK + 1, 2)])
def test_items_are_cut_into_blocks_of_one_size(n, blocks):
    job = job_of(*map(example, range(n)))
    assert job.n_blocks == blocks
    found = [evaluate_block(script_candidate(str.upper), job, i) for i in range(blocks)]
    assert [len(block) for block in found] == [BLOCK] * (blocks - 1) + [n - BLOCK * (blocks - 1)]
    assert [r.position for block in found for r in block] == list(range(n))


def test_the_order_is_a_shuffle_by_the_version_alone_and_no_block_depends_on_another(base):
    examples = [example(n) for n in range(30)]
    first, again, other = (put_in_order(examples, v) for v in ("ab12", "ab12", "ab13"))
    assert first == again != other
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
    found = row(script_candidate(lambda _: answer), example(), **fields)
    assert (found.status, found.parts, found.text) == (status, {"exact_match": (score,)}, answer)


def test_an_answer_outside_the_closed_set_is_unparsable():
    answers = {"question 0": "NO.", "question 1": "perhaps"}
    closed = [example(n, choices=("yes", "no"), reference="no") for n in range(2)]
    found = rows(script_candidate(answers.get), *closed)
    assert [(r.status, r.parts["exact_match"]) for r in found] == [("ok", (1.0,)), ("unparsable", (0.0,))]
    closed = example(choices=("yes", "no"), reference="no")
    found = row(
        script_candidate(lambda _: "No, I think."), closed, metrics=("label_in_answer", "exact_match")
    )
    assert (found.status, found.parts) == ("unparsable", {"label_in_answer": (1.0,), "exact_match": (0.0,)})
    empty = row(script_candidate(lambda _: " "), closed, metrics=("label_in_answer",))
    assert empty.parts == {"label_in_answer": (0.0,)}


def test_an_answer_cut_at_the_limit_is_truncated_and_scores_worst_unless_the_task_says_otherwise(base):
    answer = base.generate([base.encode(example().messages).context], Limits(1))[0].text
    found = row(base, example(reference=answer), max_new_tokens=1)
    assert (found.status, found.parts["exact_match"], found.finish_reason) == ("truncated", (0.0,), "length")
    found = row(base, example(reference=answer), max_new_tokens=1, truncated_scores=True)
    assert (found.status, found.parts["exact_match"]) == ("truncated", (1.0,))


@pytest.mark.parametrize("metric", ["json_fields", "rouge"])
def test_an_item_that_the_metric_does_not_read_has_no_score_whatever_is_answered(metric):
    answers = {"question 0": "", "question 1": SORRY, "question 2": "да"}
    unread = [example(n, reference="!!") for n in range(3)]
    found = rows(script_candidate(answers.get), *unread, metrics=[metric])
    expected = [("unparsable", None), ("refused", None), ("ok", None)]
    assert [(r.status, r.parts[metric]) for r in found] == expected


def test_a_prompt_text_or_choice_that_does_not_fit_is_an_error_without_a_score(base):
    long = example(1, prompt="parcel " * 300)
    found = rows(base, example(0), long, example(2), max_new_tokens=2)
    assert [r.status for r in found] == ["truncated", "error", "truncated"]
    assert found[1].parts == {"exact_match": None}
    assert "the context holds 254" in found[1].error
    assert found[1].n_prompt_tokens > 256
    room = base.max_context - len(base.encode(example().messages, chat_template=False).context)
    long = example(choices=("yes", "x " * room))
    found = row(base, long, kind="choice", metrics=("accuracy",), chat_template=False)
    assert (found.status, found.parts) == ("error", {"accuracy": None})
    long = Example("long", (), ("x " * 300,))
    short = Example("short", (), ("A red fox.",))
    found = rows(base, long, short, kind="bits_per_byte", metrics=("bits_per_byte",))
    assert [r.status for r in found] == ["error", "ok"]
    assert found[0].parts == {"bits_per_byte": None}


def table(**logprobs):
    """Return a candidate that gives every text these log-probabilities."""
    made = TextTable(tuple(logprobs), tuple(logprobs.values()))
    return TextCandidate(lambda texts: [made] * len(texts), "table")


def test_items_with_choices_are_ranked_under_rank_and_by_the_byte_where_the_task_says_so():
    closed, free = example(0, choices=("yes", "no")), example(1)
    found = rows(table(no=-0.1, yes=-2.3), closed, free, answer="rank")
    assert [(r.finish_reason, r.text) for r in found] == [("ranked", "no"), ("stop", "no")]

    asked = example(reference="a", choices=("a", "abcd"))
    for normalized, text in ((False, "a"), (True, "abcd")):
        found = row(table(a=-2.0, abcd=-3.0), asked, kind="choice", length_normalized=normalized)
        assert found.text == text


@pytest.mark.parametrize("chat", [True, False])
def test_a_choice_task_scores_the_likeliest_choice_and_keeps_the_margin(chat):
    fields = {"kind": "choice", "metrics": ("accuracy",), "chat_template": chat}
    right = row(table(yes=-1.0, no=-3.0), example(choices=("no", "yes")), **fields)
    wrong = row(table(yes=-3.0, no=-1.0), example(choices=("no", "yes")), **fields)
    assert (right.text, right.parts["accuracy"], right.margin) == ("yes", (1.0,), 2.0)
    assert (wrong.text, wrong.parts["accuracy"], wrong.margin) == ("no", (0.0,), -2.0)
    assert (right.gold_logprob, right.gold_bytes, right.status) == (-1.0, 3, "ok")


def test_ranking_by_a_model_takes_the_sum_of_the_choices_tokens(base):
    asked = example(prompt="The desk answers with", reference="money", choices=("late", "money"))
    found = row(base, asked, kind="choice", metrics=("accuracy",), chat_template=False)
    encoded = [base.encode(asked.messages, f" {c}", chat_template=False) for c in asked.choices]
    logprobs = [base.loglikelihood([e[:2]])[0].logprob for e in encoded]
    assert found.gold_logprob == pytest.approx(logprobs[1], abs=1e-4)
    assert found.margin == pytest.approx(logprobs[1] - logprobs[0], abs=1e-4)
    assert found.text == asked.choices[logprobs[1] > logprobs[0]]


def test_bits_per_byte_and_perplexity_are_those_computed_by_hand_over_bytes_of_utf_8(base):
    import torch

    text = "Where is the parcel that I paid for?"
    metrics = ("bits_per_byte", "perplexity")
    asked = Example("text", (), (text,))
    found = row(base, asked, kind="bits_per_byte", metrics=metrics, max_new_tokens=1)
    ids = torch.tensor([[base.tokenizer.bos_token_id, *base.tokenizer(text)["input_ids"]]])
    with torch.inference_mode():
        loss = base.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    bits, n_bytes = found.parts["bits_per_byte"]
    assert found.parts["perplexity"] == (pytest.approx(loss, abs=1e-3), ids.shape[1] - 1)
    assert bits == pytest.approx(loss / math.log(2), abs=1e-3)
    assert n_bytes == len(text)
    assert found.status == "ok"
    found = row(base, Example("text", (), ("Übergröße",)), kind="bits_per_byte", metrics=("bits_per_byte",))
    assert found.gold_bytes == len("Übergröße".encode()) == 12


def test_the_system_message_stands_first_and_the_template_wraps_the_last_turn():
    shots = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    asked = Example("x", (*shots, {"role": "user", "content": "c {d}"}), ("e",))
    found = wrap_prompt(asked, "Be brief.", "Q: {prompt}\nA:")
    system, last = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q: c {d}\nA:"}
    assert found.messages == (system, *shots, last)
    assert wrap_prompt(example(), "", None).messages[0] == {"role": "system", "content": ""}
    assert wrap_prompt(example(), None, None) == example()
    text = Example("text", (), ("A red fox.",))
    assert wrap_prompt(text, "Be brief.", "Q: {prompt}") == text
    own = {"role": "system", "content": "You sell lamps."}
    asked = replace(example(), messages=(own, *example().messages))
    found = wrap_prompt(asked, "Be brief.", None).messages
    assert [turn["role"] for turn in found] == ["system", "user"]
    assert found[0]["content"] == "Be brief.\n\nYou sell lamps."
    assert wrap_prompt(asked, "", None) == asked


def test_a_row_keeps_its_passages_with_their_recall_and_digests_of_what_was_asked_and_answered():
    asked = example(documents=("d1", "d2"), passages=("d2", "d9"))
    found = row(script_candidate(lambda _: "yes"), asked)
    assert (found.passages, found.recall) == (("d2", "d9"), 0.5)
    first, same, other = (row(script_candidate(str.upper), example(prompt=p)) for p in ("one", "one", "two"))
    assert (first.prompt_digest, first.output_digest) == (same.prompt_digest, same.output_digest)
    assert first.prompt_digest != other.prompt_digest
    assert first.output_digest != other.output_digest


def evaluate_own_metric(score, **bounds):
    """Answer one item that a metric of one's own scores so, beside exact_match."""
    job = job_of(example(7))
    own = mean_metric("own", lambda output, example: score, **bounds)
    both = replace(job, metrics={**job.metrics, "own": own})
    return evaluate_block(script_candidate(lambda text: "yes"), both, 0)[0]


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_is_no_number_is_none_and_the_row_says_of_which_metric_and_item(score, tmp_path):
    found = evaluate_own_metric(score, bounds=(-math.inf, math.inf))
    assert (found.status, found.parts) == ("ok", {"exact_match": (1.0,), "own": None})
    assert found.error == "metric own: found NaN or infinity for item item-7; expected a finite score"
    store.append_block(store.Store(tmp_path), IDENTITY, 0, [found])


@pytest.mark.parametrize("score", [1.5, -0.01])
def test_a_score_out_of_its_metrics_bounds_is_refused_with_metric_item_and_bounds(score):
    told = rf"metric own: found a score of {score} \(item item-7\); expected 0 to 1"
    with pytest.raises(UserError, match=told):
        evaluate_own_metric(score)
