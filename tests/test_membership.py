"""The membership signal: what is learned shows it, what is not does not, and both with an interval."""

import json
import random
from pathlib import Path

import pytest
import tiny_experiment
from tiny_methods import CPU
from typer.testing import CliRunner

from harness.cli import app
from harness.evaluation.contamination.membership import disorder, membership_gap, min_k
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.records import Example

WORDS = "red brown green fox hen gate noon account address change question answer seven eight nine ten walk".split()


def texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=12)) for _ in range(n)]


def items(given: list[str]) -> list[Example]:
    return [Example(str(i), ({"role": "user", "content": text},)) for i, text in enumerate(given)]


@pytest.fixture(scope="module")
def taught(tiny, own_cache):
    """Teach the tiny model 12 texts of random words by heart."""
    import torch

    host = ModelHost(resolve(str(tiny)), CPU)
    rows = torch.tensor(
        [host.tokenizer(f"{text}", add_special_tokens=False)["input_ids"][:24] for text in texts(12, 1)]
    )
    bos = torch.full((len(rows), 1), host.base.encode((), "a", chat_template=False).context[0])
    ids = torch.cat([bos, rows], dim=1)
    optimizer = torch.optim.AdamW(host.model.parameters(), lr=0.02)
    for _ in range(70):
        host.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return host.base


def test_texts_known_by_heart_show_the_signal_and_others_of_their_kind_do_not(taught):
    known = membership_gap("known", items(texts(12, 1)), taught.token_logprobs)
    other = membership_gap("other", items(texts(12, 2)), taught.token_logprobs)
    assert known.n == other.n == 12
    assert known.low > 1.0
    assert known.low > other.high
    assert other.low < 0.5


def test_logprobs_of_tokens_add_up_to_the_likelihood(taught):
    [text] = texts(1, 3)
    encoded = taught.encode((), text, chat_template=False)
    [likelihood] = taught.loglikelihood([(encoded.context, encoded.continuation)])
    [logprobs] = taught.token_logprobs([text])
    assert len(logprobs) == len(encoded.continuation)
    assert sum(logprobs) == pytest.approx(likelihood.logprob)


def test_a_text_longer_than_the_context_is_read_as_far_as_it_goes(taught):
    [logprobs] = taught.token_logprobs([" ".join(WORDS * 40)])
    assert len(logprobs) == taught.max_context - 1


def test_min_k_is_the_mean_of_the_least_likely_fifth():
    assert min_k([-1.0, -9.0, -2.0, -5.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]) == -7.0
    assert min_k([-3.0, -1.0]) == -3.0
    with pytest.raises(ValueError, match="no token"):
        min_k([])


def test_disorder_keeps_the_words_and_changes_their_order():
    text = texts(1, 4)[0]
    changed = disorder(text, random.Random(0))
    assert changed != text
    assert sorted(changed.split()) == sorted(text.split())


def test_a_scorer_that_knows_only_the_items_gives_the_gap_that_it_was_made_with():
    known = set(texts(20, 5))
    found = membership_gap(
        "t", items(sorted(known)), lambda asked: [[-1.0 - (t not in known)] for t in asked]
    )
    assert (found.gap, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_of_few_items_nothing_is_said():
    found = membership_gap("t", items([*texts(9, 6), "too short"]), lambda asked: [[-1.0] for _ in asked])
    assert found == ("t", 9, None, None, None)


def test_the_doctor_prints_the_gap_of_every_task_and_that_it_proves_nothing(
    tiny, tmp_path, own_cache, monkeypatch
):
    written = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    monkeypatch.chdir(Path(written).parent)
    shown = CliRunner().invoke(app, ["doctor", "--membership"])
    assert shown.exit_code == 0, shown.output
    assert "letters" in shown.stdout
    assert "too few items" in shown.stdout
    assert "no proof" in shown.stdout
    raw = json.loads(CliRunner().invoke(app, ["doctor", "--membership", "--json"]).stdout)
    measured = {task["task"]: task for task in raw["tasks"]}
    assert measured["letters"]["n"] == 12
    assert measured["letters"]["low"] < measured["letters"]["gap"] < measured["letters"]["high"]
    assert "no proof" in raw["note"]


def test_another_engine_is_refused(tiny, tmp_path, own_cache, monkeypatch):
    written = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    monkeypatch.chdir(Path(written).parent)
    shown = CliRunner().invoke(app, ["doctor", "--membership", "engine=vllm"])
    assert shown.exit_code != 0
