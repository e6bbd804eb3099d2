"""lm-eval's command line and ours, each in its own process, on the same documents in fp32."""

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
# Module and model: lm-eval's own, and our engine behind lm-eval's command line.
THEIRS = {
    "hf": ("lm_eval", "dtype=float32"),
    "harness": ("harness.evaluation.lm_eval.harness_model", "precision=fp32"),
}
OURS = "from harness.cli import main; main()"


class DocumentAnswer(NamedTuple):
    """The answer to a document, whether it is right, and the right answer's log-likelihood in nats."""

    answer: str
    right: float
    logprob: float


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    return cut_mirror(tmp_path_factory.mktemp("mirror") / "hub", TASKS, N)


def run(mirror, *words):
    """Run a command where lm-eval finds a folder instead of a name on the hub."""
    result = subprocess.run(
        [sys.executable, *map(str, words)], cwd=mirror,
        env={**os.environ, "HARNESS_DATASETS_DIR": str(mirror)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def our_answers(mirror, tmp_path_factory):
    """Run `harness eval`; return its answers by task and document."""
    folder = tmp_path_factory.mktemp("ours")
    options = ("smollm2-135m", "-t", ",".join(TASKS), "--precision", "fp32")
    run(mirror, "-c", OURS, "eval", *options, "-o", folder, "-s", "--runs", folder / "runs")
    return {
        task: {
            int(row["example_id"].partition("-")[0]): DocumentAnswer(
                row["text"], row["parts"]["acc"][0], row["gold_logprob"]
            )
            for row in lines(folder / f"samples_{task}.jsonl")
        }
        for task in TASKS
    }


@pytest.fixture(scope="module", params=["hf", pytest.param("harness", marks=pytest.mark.weekly)])
def their_answers(request, mirror, tmp_path_factory):
    module, precision = THEIRS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = f"pretrained={resolve('smollm2-135m').path},{precision}"
    options = ("--tasks", ",".join(TASKS), "--output_path", folder, "--log_samples")
    run(mirror, "-m", module, "--model", request.param, "--model_args", model, *options)
    files = {task: next(folder.rglob(f"samples_{task}_*.jsonl")) for task in TASKS}
    return {task: {s["doc_id"]: read_sample(s) for s in lines(file)} for task, file in files.items()}


def read_sample(sample):
    """Read one line of lm-eval's samples; a single continuation has no chosen answer."""
    logprobs = [float(response[0]) for response in sample["filtered_resps"]]
    choices = [request["arg_1"].removeprefix(" ") for request in sample["arguments"].values()]
    several = len(logprobs) > 1
    return DocumentAnswer(
        choices[logprobs.index(max(logprobs))] if several else "",
        float(sample["acc"]),
        logprobs[int(sample["target"]) if several else 0],
    )


@pytest.mark.parametrize("task", TASKS)
def test_both_command_lines_answer_every_document_alike(our_answers, their_answers, task):
    assert sorted(our_answers[task]) == sorted(their_answers[task]) == list(range(N))
    for document, theirs in their_answers[task].items():
        mine = our_answers[task][document]
        assert (mine.answer, mine.right) == (theirs.answer, theirs.right)
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
