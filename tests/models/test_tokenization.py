"""Texts become token ids once, a block in one call; training rows get TRL's ids, anew if anything differs."""

import threading
from dataclasses import replace
from types import MappingProxyType

import pytest
import tiny_methods
import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_methods import CPU

from harness.cache import cache_dir
from harness.evaluation import EvaluationJob, encode_block, evaluate_block
from harness.evaluation.runner import encode_blocks
from harness.methods import dpo
from harness.metrics import load_metrics
from harness.models.devices import load_base
from harness.models.hardware import Machine
from harness.models.hf import HFCandidate
from harness.models.hub import load_tokenizer, resolve
from harness.models.tokenization import encode_all
from harness.records import Encoded, Example, PromptText, RowsIdentity
from harness.spec import Task
from harness.training.tokenized import tokenize

IDENTITY = RowsIdentity("w", "t", "task", "v", "test", "p", "rank", "fp32", "e", "l", "cpu")
CHOICES = (" four", "cel", " a bird")
PART = st.text(st.sampled_from("aeb \n\t.Zé"), max_size=6)
TURNS = st.lists(PART, min_size=1, max_size=2).map(
    lambda texts: tuple({"role": r, "content": t} for r, t in zip(("user", "assistant"), texts, strict=False))
)
PLAIN = st.builds(PromptText, st.just(()), PART, st.just(False))  # without a turn there is no chat
ASKED = PLAIN | st.builds(PromptText, TURNS, PART, st.booleans())
PROMPTS = st.lists(ASKED, max_size=6)


class NotingTokenizer:
    """A tokenizer that records every call."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []

    def __call__(self, texts, **how):
        self.calls.append((texts, how["add_special_tokens"]))
        return self.tokenizer(texts, **how)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds_bos"])
def tokenizer(request, tmp_path_factory):
    folder = tiny_model.build(tmp_path_factory.mktemp("model"), adds_bos=request.param)
    return load_tokenizer(resolve(str(folder)))


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
    assert encode_all(tokenizer, prompts) == [encode_alone(tokenizer, prompt) for prompt in prompts]


def choice_job(n_items=3, **fields):
    task = Task(name="task", data={}, kind="choice", metrics=("accuracy",), **fields)
    dialogues = [({"role": "user", "content": f"Where is my par{i}?"},) for i in range(n_items)]
    examples = tuple(Example(f"item-{i}", turns, CHOICES[:1], CHOICES) for i, turns in enumerate(dialogues))
    return EvaluationJob(task, "target", "test", examples, load_metrics(task), "rank", IDENTITY)


@pytest.mark.parametrize("chat", [True, False])
def test_every_text_of_a_block_is_tokenised_once_and_all_in_one_call(tiny, own_cache, chat):
    model, tokenizer = load_base(resolve(str(tiny)), Machine("cpu", "CPU", "fp32", 1.0))
    counting = NotingTokenizer(tokenizer)
    candidate, job = HFCandidate(model, counting, "w", "packed"), choice_job(chat_template=chat)
    rows = evaluate_block(candidate, job, 0, encode_block(candidate, job, 0))
    (texts, special), *rest = counting.calls
    assert len(texts) == len(set(texts)) == len(job.examples) * (1 + len(CHOICES))
    assert special is not chat
    assert all(set(more) <= set(CHOICES) | {f" {c}" for c in CHOICES} for more, _ in rest)  # merged
    again = [replace(row, compute_s=0.0) for row in evaluate_block(candidate, job, 0)]
    assert [replace(row, compute_s=0.0) for row in rows] == again


# The next block, ahead


def test_the_next_block_is_tokenised_in_a_thread_while_a_block_is_computed():
    started = {i: threading.Event() for i in range(3)}
    threads = {}

    def encode(block):
        threads[block] = threading.current_thread()
        started[block].set()
        return f"ids {block}"

    blocks = []
    for block, ids in encode_blocks(encode, [0, 1, 2], ahead=True):
        blocks.append((block, ids))
        if block < 2:
            assert started[block + 1].wait(10), "the next block waits for this one"
            assert not started.get(block + 2, threading.Event()).is_set(), "two blocks ahead"
    assert blocks == [(i, f"ids {i}") for i in range(3)]
    assert threads[0] is threading.main_thread()
    assert threads[1] is threads[2] is not threads[0]
    assert not threads[1].is_alive()


QUICK = {"r": 2, "learning_rate": 0.01, "warmup_steps": 0, "num_train_epochs": 2}
ROWS = tiny_methods.examples(slice(0, 2))


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def test_tokens_of_the_same_rows_are_remembered_and_those_of_others_made_anew(tiny, tmp_path):
    def tokens(model, rows=ROWS, chat=True):
        source = resolve(str(model))
        noting = NotingTokenizer(load_tokenizer(source))
        ids = tokenize(rows, [row.references[:1] for row in rows], chat, noting, source)
        return ids, len(noting.calls)

    (before, n_calls), (again, n_repeated) = tokens(tiny), tokens(tiny)
    assert (before == again, n_calls > 0, n_repeated) == (True, True, 0)
    assert tokens(tiny, (replace(ROWS[0], references=("money",)), *ROWS[1:]))[0] != before
    assert tokens(tiny, chat=False)[0] != before
    started = tiny_model.build(tmp_path / "started", template=tiny_model.STARTED)
    assert tokens(started)[0] != before


@pytest.mark.parametrize(("chat", "adds_bos"), [(True, False), (False, True)])
def test_tokens_are_those_that_trl_makes(tmp_path, chat, adds_bos):
    """TRL receives the texts, and tokenises and labels them itself."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_base(resolve(str(tiny_model.build(tmp_path / "m", adds_bos=adds_bos))), CPU)
    answer = ROWS[0].references[0]
    text = {"prompt": ROWS[0].prompt, "completion": f" {answer}{tokenizer.eos_token}"}
    turns = {"prompt": list(ROWS[0].messages), "completion": [{"role": "assistant", "content": answer}]}
    config = SFTConfig(output_dir=str(tmp_path), completion_only_loss=True, use_cpu=True, bf16=False)
    rows = Dataset.from_list([turns if chat else text])
    trainer = SFTTrainer(model=model, args=config, processing_class=tokenizer, train_dataset=rows)
    (theirs,) = trainer.train_dataset
    ours = tokenize(ROWS[:1], [(answer,)], chat, tokenizer, resolve(str(tmp_path / "m")))[0]
    assert ours.wholes == [theirs["input_ids"]]
    assert [-100] * ours.start + ours.wholes[0][ours.start :] == theirs["labels"]


def list_cached_files():
    return {path.name for path in (cache_dir() / "training").iterdir()}


@pytest.mark.e2e
def test_a_reference_is_read_once_for_all_rates_and_seeds_and_anew_where_it_is_another(tiny, tmp_path):
    other_base = tiny_model.build(tmp_path / "other", seed=1)

    def count_read(model, changes=MappingProxyType({}), **options):
        before = list_cached_files() if cache_dir().exists() else set()
        folder = tmp_path / f"{len(before)} {changes} {options}"
        tiny_methods.fit(model, folder, dpo, QUICK | changes, **options)
        return len(list_cached_files() - before)

    count_read(tiny)
    assert count_read(tiny, {"learning_rate": 0.001, "beta": 0.5}, seed=1) == 0
    # One for the training pairs, one for the held-out pairs.
    assert count_read(other_base) == 2
    assert count_read(tiny, machine=CPU._replace(precision="bf16")) == 2
    assert count_read(tiny, {"per_device_train_batch_size": 2}) == 2
