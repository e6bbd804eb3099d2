"""Texts become token ids once, all of a block in one call, and the next block's while one is computed."""

import threading
from dataclasses import replace

import pytest
import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.evaluation import EvaluationJob, encode_block, evaluate_block
from harness.evaluation.runner import encode_blocks
from harness.metrics import load_metrics
from harness.models.devices import load_base
from harness.models.hardware import Machine
from harness.models.hf import HFCandidate
from harness.models.hub import load_tokenizer, resolve
from harness.models.tokenization import encode_all
from harness.records import Encoded, Example, PromptText, RowsIdentity
from harness.spec import Task

IDENTITY = RowsIdentity("w", "t", "task", "v", "test", "p", "rank", "fp32", "e", "l", "cpu")
CHOICES = (" four", "cel", " a bird")
PART = st.text(st.sampled_from("aeb \n\t.Zé"), max_size=6)
TURNS = st.lists(PART, min_size=1, max_size=2).map(
    lambda texts: tuple({"role": r, "content": t} for r, t in zip(("user", "assistant"), texts, strict=False))
)
PLAIN = st.builds(PromptText, st.just(()), PART, st.just(False))  # without a turn there is no chat
ASKED = PLAIN | st.builds(PromptText, TURNS, PART, st.booleans())
PROMPTS = st.lists(ASKED, max_size=6)


class CountingTokenizer:
    """A tokenizer that notes every call."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []

    def __call__(self, texts, **how):
        self.calls.append((texts, how["add_special_tokens"]))
        return self.tokenizer(texts, **how)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds_bos"])
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(
        resolve(str(tiny_model.build(tmp_path_factory.mktemp("model"), adds_bos=request.param)))
    )


def ids_alone(tokenizer, text, special):
    """Return what the tokenizer gives for one text, with one beginning-of-sequence token at most."""
    ids = tuple(tokenizer(text, add_special_tokens=special)["input_ids"])
    return ids[1:] if ids[:1] * 2 == ids[:2] == (tokenizer.bos_token_id,) * 2 else ids


def encode_alone(tokenizer, prompt):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    prefix, special = (bos if bos is not None else eos,), not prompt.chat_template
    text = ""
    if prompt.chat_template:
        how = {"tokenize": False, "add_generation_prompt": True}
        text = tokenizer.apply_chat_template(list(prompt.messages), **how)
    else:
        for turn in prompt.messages:
            gap = "" if not text else " " if turn["role"] == "assistant" else "\n\n"
            text += gap + turn["content"]
    context = ids_alone(tokenizer, text, special)
    if not prompt.continuation:
        return Encoded(context or prefix)
    behind = ids_alone(tokenizer, prompt.continuation, False)
    if not text:
        return Encoded(prefix, behind)
    whole = ids_alone(tokenizer, text + prompt.continuation, special)
    if whole[: len(context)] == context:
        return Encoded(context, whole[len(context) :])
    return Encoded(context, behind, True)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=PROMPTS)
def test_prompts_together_have_the_token_ids_of_each_alone(tokenizer, prompts):
    assert encode_all(tokenizer, prompts) == [encode_alone(tokenizer, one) for one in prompts]


def choice_job(n_items=3, **fields):
    task = Task(name="task", data={}, kind="choice", metrics=("accuracy",), **fields)
    examples = tuple(
        Example(f"item-{i}", ({"role": "user", "content": f"Where is my par{i}?"},), CHOICES[:1], CHOICES)
        for i in range(n_items)
    )
    return EvaluationJob(task, "target", "test", examples, load_metrics(task), "rank", IDENTITY)


@pytest.mark.parametrize("chat", [True, False])
def test_every_text_of_a_block_is_tokenised_once_and_all_in_one_call(tiny, own_cache, chat):
    model, tokenizer = load_base(resolve(str(tiny)), Machine("cpu", "CPU", "fp32", 1.0))
    counting = CountingTokenizer(tokenizer)
    candidate, job = HFCandidate(model, counting, "w", "packed"), choice_job(chat_template=chat)
    rows = evaluate_block(candidate, job, 0, encode_block(candidate, job, 0))
    (texts, special), *others = counting.calls
    assert len(texts) == len(set(texts)) == len(job.examples) * (1 + len(CHOICES))
    assert special is not chat
    assert all(set(more) <= set(CHOICES) | {f" {one}" for one in CHOICES} for more, _ in others)  # merged
    again = [replace(row, compute_s=0.0) for row in evaluate_block(candidate, job, 0)]
    assert [replace(row, compute_s=0.0) for row in rows] == again


# The next block, ahead


def test_the_next_block_is_tokenised_in_a_thread_while_a_block_is_computed():
    begun = {i: threading.Event() for i in range(3)}
    threads = {}

    def encode(block):
        threads[block] = threading.current_thread()
        begun[block].set()
        return f"ids {block}"

    found = []
    for block, ids in encode_blocks(encode, [0, 1, 2], ahead=True):
        found.append((block, ids))
        if block < 2:
            assert begun[block + 1].wait(10), "the next block waits for this one"
            assert not begun.get(block + 2, threading.Event()).is_set(), "two blocks ahead"
    assert found == [(i, f"ids {i}") for i in range(3)]
    assert threads[0] is threading.main_thread()
    assert threads[1] is threads[2] is not threads[0]
    assert not threads[1].is_alive()
