"""The real model scored by us and by lm-eval itself on the same documents, answer by answer.

Larger runs: HARNESS_LM_EVAL_LIMIT (documents per task), HARNESS_LM_EVAL_GSM8K (documents of gsm8k) and
HARNESS_LM_EVAL_PRECISION (bf16, fp32); `-s` prints a table of both scores and their differences.
"""

import os
import sys
from typing import NamedTuple

import datasets
import numpy as np
import pytest
from lm_eval_mirror import cut_mirror

from harness.experiment import standalone
from harness.progress import SilentProgress

pytestmark = pytest.mark.weekly

LIMIT = int(os.environ.get("HARNESS_LM_EVAL_LIMIT", "24"))
N_GENERATED = int(os.environ.get("HARNESS_LM_EVAL_GSM8K", "2"))
PRECISION = os.environ.get("HARNESS_LM_EVAL_PRECISION", "auto")
BATCH = 8
# Where answers differ, the log-likelihoods of lm-eval's two best choices may differ by this much, in nats of
# the better continuation.
NOISE_NATS = {"bf16": 1.0, "fp16": 0.1, "fp32": 0.001}
# Whole sentences without a context, as in BLiMP: two correct layouts differ in bf16 by up to 10 nats on one,
# and lm-eval's own bf16 by 3 from its fp32; in fp32 both agree to 0.001.
ALONE_NATS = {**NOISE_NATS, "bf16": 3.0}

BLIMP = (
    "adjunct_island anaphor_number_agreement causative determiner_noun_agreement_2 drop_argument "
    "ellipsis_n_bar_1 existential_there_quantifiers_1 inchoative irregular_past_participle_verbs "
    "wh_island"
).split()
MMLU = (
    "abstract_algebra anatomy astronomy business_ethics college_computer_science "
    "elementary_mathematics formal_logic global_facts high_school_geography high_school_us_history "
    "international_law marketing miscellaneous moral_disputes nutrition philosophy "
    "professional_medicine sociology us_foreign_policy world_religions"
).split()
# Task: the folder of its data, its configuration, and the evaluated split.
CHOICES = {
    "piqa": ("baber/piqa", "default", "validation"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
    "openbookqa": ("allenai/openbookqa", "main", "test"),
    "boolq": ("aps/super_glue", "boolq", "validation"),
    "lambada_openai": ("EleutherAI/lambada_openai", "default", "test"),
    **{f"blimp_{name}": ("nyu-mll/blimp", name, "train") for name in BLIMP},
    **{f"mmlu_{name}": ("cais/mmlu", name, "test") for name in MMLU},
}
# Tasks that are also asked with shots: the numbers of shots and of documents.
AFTER_SHOTS = {"arc_challenge": (25, 10), "mmlu_marketing": (5, 20)}
GENERATED = {"gsm8k": ("openai/gsm8k", "main", "test")}


class BothSides(NamedTuple):
    """Results of both sides: our rows by task and document, lm-eval's samples by task, and the precision."""

    ours: dict
    theirs: dict
    precision: str


def ask_both(folder, tasks, n, monkeypatch, *, shots=None, precision=PRECISION):
    mirror = cut_mirror(folder / "hub", tasks, n)
    monkeypatch.setenv("HARNESS_DATASETS_DIR", str(mirror))
    # Else datasets gives lm-eval the first mirror's documents, as both have files of the same names.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    asked_tasks = standalone.tasks_of(list(tasks), None, shots)
    prepared = standalone.prepare_model(
        "smollm2-135m", asked_tasks, folder / "runs", SilentProgress(), precision=precision
    )
    rows = standalone.evaluate(prepared).rows
    ours = {task: {int(r.example_id.partition("-")[0]): r for r in answers} for task, answers in rows.items()}
    monkeypatch.chdir(mirror)  # so lm-eval finds a folder instead of a name on the hub
    # Let lm-eval load the same weights and do everything itself.
    import lm_eval

    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[prepared.session.machine.precision]
    results = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(prepared.session.source.path), "dtype": dtype},
        tasks=list(tasks), num_fewshot=shots, device=prepared.session.machine.device, batch_size=BATCH,
        bootstrap_iters=0,
    )  # fmt: skip
    theirs = results["samples"]
    return BothSides(ours, theirs, prepared.session.machine.precision)


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield ask_both(tmp_path_factory.mktemp("choices"), CHOICES, LIMIT, patch)


def gap_nats(sample, metric):
    """Return the gap between lm-eval's two best choices, in nats of the better continuation."""
    logprobs = np.array([float(r[0]) for r in sample["filtered_resps"]])
    if len(logprobs) < 2:
        return 0.0  # one continuation, right if it is the greedy one
    sizes = (
        np.array([len(c) for _, c in sample["arguments"]]) - 1
        if metric == "acc_norm"
        else np.ones(len(logprobs))
    )
    best, second = np.argsort(-logprobs / sizes)[:2]
    return float((logprobs[best] / sizes[best] - logprobs[second] / sizes[second]) * sizes[best])


def read_gold_logprob(sample):
    responses = sample["filtered_resps"]
    target = sample["target"] if len(responses) > 1 else 0
    if not str(target).isdigit():  # winogrande's target is the text after both fillers
        target = int(sample["doc"]["answer"]) - 1
    return float(responses[int(target)][0])


def test_every_document_is_the_one_that_lm_eval_asks(choices):
    for task, samples in choices.theirs.items():
        hashes = {s["doc_id"]: s["doc_hash"][:12] for s in samples}
        assert {i: r.example_id.partition("-")[2] for i, r in choices.ours[task].items()} == hashes, task


def hold_together(sides, task):
    """Assert that our answers equal lm-eval's, except for near-ties; print the differences."""
    ours, samples = sides.ours[task], sides.theirs[task]
    metrics = [m for m in samples[0]["metrics"] if m.startswith("acc")]
    worst = max(abs(read_gold_logprob(s) - ours[s["doc_id"]].gold_logprob) for s in samples)
    for metric in metrics:
        differing = [s for s in samples if float(s[metric]) != ours[s["doc_id"]].parts[metric][0]]
        gaps = sorted(gap_nats(s, metric) for s in differing)
        theirs = np.mean([float(s[metric]) for s in samples])
        mine = np.mean([r.parts[metric][0] for r in ours.values()])
        sys.stdout.write(
            f"| {task} | {metric} | {len(samples)} | {100 * theirs:.1f} | {100 * mine:.1f} | {len(differing)} "
            f"| {', '.join(f'{g:.2f}' for g in gaps) or '–'} | {worst:.4f} |\n"
        )
        noise = ALONE_NATS if task.startswith("blimp_") else NOISE_NATS
        assert all(gap <= noise[sides.precision] for gap in gaps)
    assert sides.precision != "fp32" or worst <= NOISE_NATS["fp32"]


@pytest.mark.parametrize("task", CHOICES)
def test_answers_agree_with_lm_eval_but_for_choices_that_are_as_likely(choices, task):
    hold_together(choices, task)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task", AFTER_SHOTS)
def test_answers_after_shots_agree_with_lm_eval_but_for_choices_that_are_as_likely(
    task, precision, tmp_path, monkeypatch
):
    shots, n = AFTER_SHOTS[task]
    sides = ask_both(tmp_path, {task: CHOICES[task]}, n, monkeypatch, shots=shots, precision=precision)
    prompts = {s["doc_id"]: s["arguments"][0][0] for s in sides.theirs[task]}
    assert {i: row.prompt for i, row in sides.ours[task].items()} == prompts
    assert {prompt.count("Answer:") for prompt in prompts.values()} == {shots + 1}
    assert len(prompts) == n
    hold_together(sides, task)


def test_generated_answers_to_gsm8k_are_extracted_alike(tmp_path, monkeypatch):
    sides = ask_both(tmp_path, GENERATED, N_GENERATED, monkeypatch)
    rows = sides.ours["gsm8k"]
    differing = 0
    for name in ("strict-match", "flexible-extract"):
        samples = [s for s in sides.theirs["gsm8k"] if s["filter"] == name]
        scores = {s["doc_id"]: float(s["exact_match"]) for s in samples}
        mine = {i: r.parts[f"exact_match,{name}"][0] for i, r in rows.items()}
        texts = {s["doc_id"]: s["resps"][0][0] for s in samples}
        differing = sum(rows[i].text != text for i, text in texts.items())
        same = sum(scores[i] == mine[i] for i in scores)
        sys.stdout.write(
            f"| gsm8k | {name} | {len(scores)} | same score {same} | same text {len(texts) - differing} |\n"
        )
        assert all(scores[i] == mine[i] for i in scores if rows[i].text == texts[i])
        assert len(scores) == N_GENERATED
    if sides.precision == "fp32":
        assert differing == 0
