"""lm-eval's command line and ours, each in a process of its own, on the same documents in fp32."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
from lm_eval_mirror import cut_mirror

from harness.models.hub import resolve

pytestmark = pytest.mark.slow

N = 8
TASKS = {
    "piqa": ("baber/piqa", "default", "validation"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "lambada_openai": ("EleutherAI/lambada_openai", "default", "test"),
}
# Module and model: lm-eval's own, and our engine below lm-eval's command line.
THEIRS = {
    "hf": ("lm_eval", "dtype=float32"),
    "harness": ("harness.evaluation.lm_eval.engine_for_lm_eval", "precision=fp32"),
}
OURS = "from harness.cli import main; main()"


class DocumentAnswer(NamedTuple):
    """Of one document: the answer, whether it is right, and the right one's log-likelihood in nats."""

    answer: str
    right: float
    logprob: float


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    return cut_mirror(tmp_path_factory.mktemp("mirror") / "hub", TASKS, N)


def run(mirror, *words):
    """Run a command where lm-eval finds a folder in place of a name on the hub."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=mirror,
        env={**os.environ, "HARNESS_DATASETS_DIR": str(mirror)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def our_answers(mirror, tmp_path_factory):
    """Ask by `harness eval`; what it said by task and document."""
    out = tmp_path_factory.mktemp("ours")
    asked = ("smollm2-135m", "-t", ",".join(TASKS), "--precision", "fp32")
    run(mirror, "-c", OURS, "eval", *asked, "-o", out, "-s", "--runs", out / "runs")
    return {
        task: {
            int(row["example_id"].partition("-")[0]): DocumentAnswer(
                row["text"], row["parts"]["acc"][0], row["gold_logprob"]
            )
            for row in lines(out / f"samples_{task}.jsonl")
        }
        for task in TASKS
    }


@pytest.fixture(scope="module", params=["hf", pytest.param("harness", marks=pytest.mark.weekly)])
def their_answers(request, mirror, tmp_path_factory):
    module, precision = THEIRS[request.param]
    out = tmp_path_factory.mktemp(request.param)
    model = f"pretrained={resolve('smollm2-135m').path},{precision}"
    asked = ("--tasks", ",".join(TASKS), "--output_path", out, "--log_samples")
    run(mirror, "-m", module, "--model", request.param, "--model_args", model, *asked)
    files = {task: next(out.rglob(f"samples_{task}_*.jsonl")) for task in TASKS}
    return {task: {s["doc_id"]: read_sample(s) for s in lines(file)} for task, file in files.items()}


def read_sample(sample):
    """Read one line of lm-eval's samples; a continuation without others has no answer but itself."""
    logprobs = [float(response[0]) for response in sample["filtered_resps"]]
    choices = [asked["arg_1"].removeprefix(" ") for asked in sample["arguments"].values()]
    several = len(logprobs) > 1
    return DocumentAnswer(
        choices[logprobs.index(max(logprobs))] if several else "",
        float(sample["acc"]),
        logprobs[int(sample["target"]) if several else 0],
    )


@pytest.mark.parametrize("task", TASKS)
def test_both_command_lines_answer_every_document_alike(our_answers, their_answers, task):
    assert sorted(our_answers[task]) == sorted(their_answers[task]) == list(range(N))
    for document, said in their_answers[task].items():
        mine = our_answers[task][document]
        assert (mine.answer, mine.right) == (said.answer, said.right)
        assert mine.logprob == pytest.approx(said.logprob, abs=1e-3)
