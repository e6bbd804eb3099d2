"""Classification heads and embeddings: opened anew they answer as they were trained, and beat a guess."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny_experiment
import tiny_methods
from tiny_experiment import runs_of
from tiny_methods import CPU

from harness.methods import embedding, head
from harness.models.hub import resolve
from harness.records import Limits
from harness.training import open_embedding, open_head
from harness.training.heads import embedder

pytestmark = pytest.mark.usefixtures("own_cache")

OPENS = {head: open_head, embedding: open_embedding}


def context(tiny, folder, train=slice(0, 3)):
    """Make a context whose validation rows are those trained on, so that the best checkpoint knows them."""
    rows = tiny_methods.examples(train)
    return replace(tiny_methods.context(tiny, folder), train=rows, validation=rows)


def open_weights(module, weights, source):
    return OPENS[module](weights.folder / weights.kind, source, CPU, weights.digest)


def answers(candidate, examples):
    prompts = [candidate.encode(e.messages).context for e in examples]
    return [output.text for output in candidate.generate(prompts, Limits(4))]


def accuracy(candidate, examples):
    right = [a == e.references[0] for a, e in zip(answers(candidate, examples), examples, strict=True)]
    return sum(right) / len(right)


@pytest.mark.e2e
@pytest.mark.parametrize("train", ["adapter", "head", "all"])
def test_a_head_knows_the_letters_it_was_trained_on_when_it_is_opened_anew(tiny, tmp_path, train):
    params = head.Params(train=train, r=4, learning_rate=0.01, num_train_epochs=12, warmup_steps=0)
    made = head.fit(context(tiny, tmp_path), params)
    figures = made.training
    candidate = open_weights(head, made, resolve(str(tiny)))
    assert accuracy(candidate, tiny_methods.examples(slice(0, 3))) >= (0.7 if train == "head" else 0.9)
    assert figures.n_examples == 18
    assert figures.best_validation_loss == min(loss for _, loss in figures.validation_loss)
    assert open_weights(head, made, resolve(str(tiny))).weights_digest == made.digest


def test_the_logprobs_of_a_table_are_those_of_all_labels(tiny, tmp_path):
    made = embedding.fit(context(tiny, tmp_path), embedding.Params())
    candidate = open_weights(embedding, made, resolve(str(tiny)))
    asked = candidate.encode(tiny_methods.examples(slice(0, 1))[0].messages).context
    found = candidate.loglikelihood([(asked, b"late"), (asked, b"money")])
    assert np.exp([one.logprob for one in found]).sum() == pytest.approx(1, abs=1e-5)


def test_the_base_embeds_a_text_as_the_mean_of_its_tokens_whatever_stands_beside_it(tiny):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["Where is the parcel that I paid for on Monday?", "late"]
    found = embedder(None, resolve(str(tiny)), CPU, 64)(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny).eval()
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert row.tolist() == pytest.approx(states.mean(0).tolist(), abs=1e-4)


def test_embeddings_of_the_base_are_sorted_as_scikit_learn_sorts_them(tiny, tmp_path):
    from sklearn.linear_model import LogisticRegression

    train, test = tiny_methods.examples(slice(0, 3)), tiny_methods.examples(slice(5, 7))
    made = embedding.fit(context(tiny, tmp_path), embedding.Params(C=1.0))
    embed = embedder(None, resolve(str(tiny)), CPU, 512)
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(
        embed([e.prompt for e in train]).numpy(), [e.references[0] for e in train]
    )
    expected = fitted.predict(embed([e.prompt for e in test]).numpy()).tolist()
    assert answers(open_weights(embedding, made, resolve(str(tiny))), test) == expected


CANDIDATES = """\
  head: {method: head, params: {r: 2, num_train_epochs: 1, max_length: 200}}
  embedding: {method: embedding}
"""


@pytest.mark.e2e
def test_heads_and_embeddings_stand_in_a_comparison_with_their_latency(tiny, tmp_path):
    report = tiny_experiment.run(
        tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n" + CANDIDATES)
    )
    by_name = {facts.name: facts for facts in report.facts}
    runs = tiny_experiment.runs_of(tmp_path / "harness.yaml")
    for name in ("head", "embedding"):
        assert by_name[name].state == "done", by_name[name].error
        assert by_name[name].target.n == by_name["prompt"].target.n
        assert runs[name].latency["p50_s"] > 0
        assert runs[name].training.wall_s > 0


@pytest.mark.e2e
def test_a_local_encoder_never_runs_code_of_its_own(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "encoder")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "own.Module"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    both = f"  prompt: prompt\n  words: {{method: embedding, params: {{encoder: {folder}}}}}\n"
    path = tiny_experiment.write(tmp_path / "work", tiny, both)
    tiny_experiment.run(path)
    found = runs_of(path)
    assert (found["prompt"].state, found["words"].state) == ("done", "failed")
    assert "references the module class 'own.Module', which is not part of" in found["words"].error
    assert not (tmp_path / "it ran").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("module", [head, embedding])
def test_a_real_encoder_sorts_letters_of_words_that_it_was_not_trained_on(tiny, tmp_path, minilm, module):
    """A bag of words cannot: it has never seen these words."""
    given = {"encoder": str(minilm)}
    if module is head:
        given |= {"train": "head", "learning_rate": 0.02, "num_train_epochs": 10}
    made = module.fit(context(tiny, tmp_path, slice(0, 4)), module.Params(**given))
    candidate = open_weights(module, made, resolve(str(tiny)))
    assert accuracy(candidate, tiny_methods.examples(slice(4, 8))) >= 0.75
