"""The membership signal: what is learned shows it, what is not does not, and both with an interval."""

import json
import math
import random
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_experiment
from tiny_methods import CPU
from typer.testing import CliRunner

from harness import config as configuration
from harness.cli import app
from harness.evaluation.contamination import membership
from harness.evaluation.contamination.membership import disorder, measure_membership, min_k
from harness.experiment import Scope, prepare_session
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.models.token_scores import TokenScores, standardize
from harness.progress import SilentProgress
from harness.records import Example

WORDS = "red brown green fox hen gate noon account address change question answer seven eight nine ten walk".split()


def texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=12)) for _ in range(n)]


def items(given: list[str]) -> list[Example]:
    return [Example(str(i), ({"role": "user", "content": text},)) for i, text in enumerate(given)]


class Reports(SilentProgress):
    """Keeps the shares that are reported of each stage."""

    def __init__(self):
        self.shares = {}

    @contextmanager
    def stage(self, label, expected_s=0.0):
        of = self.shares.setdefault(label, [])
        yield lambda done, total, note="": of.append(done / total)


@pytest.fixture(scope="module")
def memorizing_base(tiny, own_cache):
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


def membership_gap(task, of, score, most=None):
    return membership._membership(membership._draw(task, of, most), score)


def test_texts_known_by_heart_show_the_signal_and_others_of_their_kind_do_not(memorizing_base):
    known = membership_gap("known", items(texts(12, 1)), memorizing_base.score_tokens)
    other = membership_gap("other", items(texts(12, 2)), memorizing_base.score_tokens)
    assert known.n == other.n == 12
    assert known.min_k.low > 1.0
    for of_known, of_other in zip(known[3:], other[3:], strict=True):
        assert of_known.low > of_other.high
        assert of_other.low < 0.5


def test_logprobs_of_tokens_add_up_to_the_likelihood(memorizing_base):
    [text] = texts(1, 3)
    encoded = memorizing_base.encode((), text, chat_template=False)
    [likelihood] = memorizing_base.loglikelihood([(encoded.context, encoded.continuation)])
    [scores] = memorizing_base.score_tokens([text])
    assert len(scores.logprobs) == len(scores.standardized) == len(encoded.continuation)
    assert sum(scores.logprobs) == pytest.approx(likelihood.logprob, abs=1e-3)


def test_standardized_scores_are_those_of_the_definition(memorizing_base):
    import torch

    [text] = texts(1, 7)
    encoded = memorizing_base.encode((), text, chat_template=False)
    expected, ids = [], list(encoded.context)
    for token in encoded.continuation:
        with torch.inference_mode():
            logits = memorizing_base.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        p = [math.exp(x) for x in logits]
        log_p = [math.log(one / sum(p)) for one in p]
        mean = sum(math.exp(x) * x for x in log_p)
        sd = math.sqrt(sum(math.exp(x) * (x - mean) ** 2 for x in log_p))
        expected.append((log_p[token] - mean) / sd)
        ids.append(token)
    [scores] = memorizing_base.score_tokens([text])
    assert scores.standardized == pytest.approx(expected, abs=1e-3)


def test_a_token_of_which_the_model_is_sure_counts_for_nothing():
    import torch

    sure = torch.tensor([[0.0, -math.inf, -math.inf], [math.log(0.5), math.log(0.5), -math.inf]])
    assert standardize(sure, torch.tensor([0, 1]))[1] == [0.0, 0.0]


def test_a_text_longer_than_the_context_is_read_as_far_as_it_goes(memorizing_base):
    [scores] = memorizing_base.score_tokens([" ".join(WORDS * 40)])
    assert len(scores.logprobs) == memorizing_base.max_context - 1


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

    def score(asked):
        return [TokenScores([-1.0 - (t not in known)], [-2.0 * (t not in known)]) for t in asked]

    found = membership_gap("t", items(sorted(known)), score)
    assert found.min_k == pytest.approx((1.0, 1.0, 1.0))
    assert found.min_k_plus_plus == pytest.approx((2.0, 2.0, 2.0))


def test_so_many_items_are_asked_as_are_wanted_and_they_are_counted():
    def score(asked):
        return [TokenScores([-1.0], [-1.0]) for _ in asked]

    some, every = (membership_gap("t", items(texts(20, 5)), score, most) for most in (12, None))
    assert (some.n, some.of) == (12, 20)
    assert (every.n, every.of) == (20, 20)


def test_texts_are_scored_in_batches_as_they_are_alone(memorizing_base):
    asked = [" ".join(text.split()[: 2 + i]) for i, text in enumerate(texts(9, 8))]
    together = memorizing_base.score_tokens(asked)
    for text, scores in zip(asked, together, strict=True):
        [alone] = memorizing_base.score_tokens([text])
        for one, other in zip(alone, scores, strict=True):
            assert other == pytest.approx(one, abs=1e-3)


def test_how_far_the_scoring_is_gets_reported(tiny, tmp_path, own_cache, monkeypatch):
    written = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    session = prepare_session(configuration.load(Path(written)), Scope(), seen := Reports())
    found = measure_membership(session, 10)
    assert sum(m.n for m in found if m.min_k) == 10
    (shares,) = (of for label, of in seen.shares.items() if "log-probabilities under the base" in label)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_of_few_items_nothing_is_said():
    found = membership_gap("t", items([*texts(9, 6), "too short"]), lambda asked: [])
    assert found == ("t", 9, 9, None, None)


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
    assert "min-k %++" in shown.stdout
    for signal in ("min_k", "min_k_plus_plus"):
        gap = measured["letters"][signal]
        assert gap["low"] < gap["mean"] < gap["high"]
    assert "no proof" in raw["note"]


def test_another_engine_is_refused(tiny, tmp_path, own_cache, monkeypatch):
    written = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    monkeypatch.chdir(Path(written).parent)
    shown = CliRunner().invoke(app, ["doctor", "--membership", "engine=vllm"])
    assert shown.exit_code != 0
