"""Methods with parts of their own: bottleneck adapters, heads and embeddings, and a taught student."""

import json
import shutil

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from tiny_experiment import runs_of
from tiny_methods import CPU, host_of
from tiny_model import ASKED, logits, unchanged

from harness.errors import CandidateFailed, UserError
from harness.methods import bottleneck, gkd, head
from harness.methods.text_classifiers import Embedding
from harness.models import deltas
from harness.models.deltas import CONFIG, apply_delta
from harness.models.devices import load_base
from harness.models.hf import HFCandidate
from harness.models.hub import resolve, shape
from harness.records import Limits
from harness.training import open_embedding, open_head
from harness.training.heads import embedder

pytestmark = pytest.mark.usefixtures("own_cache")


QUICK = {"learning_rate": 0.02, "num_train_epochs": 2, "per_device_train_batch_size": 1, "warmup_steps": 0}


def train(tiny, folder, **changed_params):
    """Train for some steps; returns the weights and the trained model in memory."""
    models = []
    context = tiny_methods.context(tiny, folder, prepare=models.append)
    return bottleneck.fit(context, bottleneck.Params(**{**QUICK, **changed_params})), models[0]


@pytest.mark.parametrize(("style", "precision"), [("houlsby", "bf16"), ("pfeiffer", "fp32")])
def test_a_new_adapter_changes_no_bit_of_what_the_base_computes(tiny, style, precision):
    model, _ = load_base(resolve(str(tiny)), CPU._replace(precision=precision))
    ids = list(range(5, 25))
    plain, form = logits(model, ids), deltas.Bottleneck(style, 4, "gelu")
    bottlenecks = deltas.new_bottlenecks(model, form)
    handles = deltas.hook(model, form, bottlenecks)
    assert logits(model, ids).equal(plain)
    bottlenecks["1_mlp"].up.bias.data += 0.5
    assert not logits(model, ids).equal(plain)
    for handle in handles:
        handle.remove()
    assert logits(model, ids).equal(plain)


@pytest.mark.e2e
def test_an_adapter_opened_again_gives_the_same_logits_and_scores_packed_rows_as_alone(tiny, tmp_path):
    weights, trained = train(tiny, tmp_path, style="houlsby", reduction_factor=4)
    host = host_of(tiny)
    ids = host.base.encode(ASKED).context
    pairs = [(ids[:3], ids[3:9]), (ids[:3], ids[5:7]), (ids[1:6], ids[6:8]), (ids[:1], ids[4:5])]
    with unchanged(host.model, ids) as plain, apply_delta(host.model, weights.folder / "delta"):
        assert logits(host.model, ids).allclose(logits(trained, ids), atol=1e-5)
        assert not logits(host.model, ids).allclose(plain, atol=1e-3)
        packed = HFCandidate(host.model, host.tokenizer, weights.digest, "packed").loglikelihood(pairs)
        alone = HFCandidate(host.model, host.tokenizer, weights.digest, "plain").loglikelihood(pairs)
    assert [score.logprob for score in packed] == pytest.approx([score.logprob for score in alone], abs=1e-4)
    base = [score.logprob for score in host.base.loglikelihood(pairs)]
    assert [score.logprob for score in packed] != pytest.approx(base, abs=1e-3)
    after = trained.state_dict()
    before = load_base(resolve(str(tiny)), CPU)[0].state_dict()
    assert all(tensor.equal(after[name]) for name, tensor in before.items()), "only the adapters are trained"
    same, different = (
        train(tiny, tmp_path / f"{kind}", style="houlsby", reduction_factor=4, non_linearity=kind)[0].digest
        for kind in (None, "tanh")
    )
    assert weights.digest == same != different


@pytest.mark.parametrize(("style", "adapters_a_layer"), [("houlsby", 2), ("pfeiffer", 1)])
def test_the_parameters_are_those_of_the_papers(tiny, tmp_path, style, adapters_a_layer):
    weights, trained = train(tiny, tmp_path, style=style, bottleneck_size=3, max_steps=1)
    d, m, n_layers = trained.config.hidden_size, 3, trained.config.num_hidden_layers
    expected = n_layers * adapters_a_layer * (2 * m * d + d + m)
    assert weights.training.n_trainable == expected
    params = bottleneck.Params(style=style, bottleneck_size=3)
    assert bottleneck.adapter_parameters(shape(resolve(str(tiny))), params) == expected


def test_the_size_is_written_or_a_share_of_the_hidden_size():
    settings = ({}, {"reduction_factor": 2}, {"bottleneck_size": 64})
    assert [bottleneck.Params(**params).size_for(576) for params in settings] == [36, 288, 64]


def test_a_delta_of_another_base_or_form_is_refused(tiny, tmp_path):
    weights, trained = train(tiny, tmp_path, max_steps=1)
    config = weights.folder / "delta" / CONFIG
    other_size = config.read_text().replace('"size": 2', '"size": 3')
    for text, message in ((other_size, "of another base"), ('{"form": "wings"}', "of the form 'wings'")):
        config.write_text(text)
        with pytest.raises(CandidateFailed, match=message), apply_delta(trained, config.parent):
            pass


OPENS = {head: open_head, Embedding: open_embedding}


def context(tiny, folder, train=slice(0, 3)):
    """Make a context that validates on the training rows, so that the best checkpoint knows them."""
    rows = tiny_methods.examples(train)
    return tiny_methods.context(tiny, folder, train=rows, validation=rows)


def open_weights(module, weights, source):
    return OPENS[module](weights.folder / weights.kind, source, CPU, weights.digest)


def answers(candidate, examples):
    prompts = [candidate.encode(e.messages).context for e in examples]
    return [output.text for output in candidate.generate(prompts, Limits(4))]


def accuracy(candidate, examples):
    right = [a == e.references[0] for a, e in zip(answers(candidate, examples), examples, strict=True)]
    return sum(right) / len(right)


@pytest.mark.e2e
@pytest.mark.parametrize("train", ["head", "all"])
def test_a_head_knows_the_letters_it_was_trained_on_when_it_is_opened_anew(tiny, tmp_path, train):
    params = head.Params(train=train, r=4, learning_rate=0.01, num_train_epochs=12, warmup_steps=0)
    weights = head.fit(context(tiny, tmp_path), params)
    figures = weights.training
    candidate = open_weights(head, weights, resolve(str(tiny)))
    assert accuracy(candidate, tiny_methods.examples(slice(0, 3))) >= (0.7 if train == "head" else 0.9)
    assert figures.others["n_examples"] == 18
    assert figures.best_validation_loss == min(loss for _, loss in figures.validation_loss)
    assert open_weights(head, weights, resolve(str(tiny))).weights_digest == weights.digest


def test_the_base_embeds_a_text_as_the_mean_of_its_tokens_whatever_stands_beside_it(tiny):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["Where is the parcel that I paid for on Monday?", "late"]
    embeddings = embedder(None, resolve(str(tiny)), CPU, 64)(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModel.from_pretrained(tiny).eval()
    for text, row in zip(texts, embeddings, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert row.tolist() == pytest.approx(states.mean(0).tolist(), abs=1e-4)


def test_embeddings_of_the_base_are_sorted_as_scikit_learn_sorts_them(tiny, tmp_path):
    from sklearn.linear_model import LogisticRegression

    train, test = tiny_methods.examples(slice(0, 3)), tiny_methods.examples(slice(5, 7))
    weights = Embedding.METHOD.fit(context(tiny, tmp_path), Embedding.Params(C=1.0))
    embed = embedder(None, resolve(str(tiny)), CPU, 512)
    train_vectors, test_vectors = (embed([e.prompt for e in examples]).numpy() for examples in (train, test))
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(train_vectors, [e.references[0] for e in train])
    expected = fitted.predict(test_vectors).tolist()
    assert answers(open_weights(Embedding, weights, resolve(str(tiny))), test) == expected


CANDIDATES = """\
  prompt: {method: base}
  own: {method: bottleneck, params: {style: houlsby, max_steps: 2}, sweep: {bottleneck_size: [2, 4]}}
  head: {method: head, params: {r: 2, num_train_epochs: 1, max_length: 200}}
  embedding: {method: embedding}
"""


@pytest.mark.e2e
def test_bottlenecks_heads_and_embeddings_stand_in_a_comparison_with_their_latency(tiny, tmp_path):
    report = tiny_experiment.run(tiny_experiment.write(tmp_path, tiny, CANDIDATES))
    by_name = {facts.name: facts for facts in report.facts}
    runs = tiny_experiment.runs_of(tmp_path / "harness.yaml")
    assert runs["own"].weights_digest != runs["own"].base_digest
    assert {trial.params["bottleneck_size"] for trial in runs["own"].training.sweep} == {2, 4}
    for name in ("own", "head", "embedding"):
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
    candidates = f"  prompt: prompt\n  words: {{method: embedding, params: {{encoder: {folder}}}}}\n"
    path = tiny_experiment.write(tmp_path / "work", tiny, candidates)
    tiny_experiment.run(path)
    runs = runs_of(path)
    assert (runs["prompt"].state, runs["words"].state) == ("done", "failed")
    assert "references the module class 'own.Module', which is not part of" in runs["words"].error
    assert not (tmp_path / "it ran").exists()


@pytest.mark.weekly
def test_a_real_encoder_sorts_letters_of_words_that_it_was_not_trained_on(tiny, tmp_path, minilm):
    """A bag of words cannot: it has never seen these words."""
    params = Embedding.Params(encoder=str(minilm))
    weights = Embedding.METHOD.fit(context(tiny, tmp_path, slice(0, 4)), params)
    candidate = open_weights(Embedding, weights, resolve(str(tiny)))
    assert accuracy(candidate, tiny_methods.examples(slice(4, 8))) >= 0.75


PARAMS = {"r": 4, "max_new_tokens": 3, "warmup_steps": 0, "max_length": 200}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Other weights behind the same vocabulary."""
    return tiny_model.build(tmp_path_factory.mktemp("teacher"), seed=7)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A model whose tokenizer has one more token."""
    from transformers import AutoTokenizer

    folder = tiny_model.build(tmp_path_factory.mktemp("stranger"), seed=8)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.e2e
def test_the_student_comes_closer_to_its_teacher(tiny, teacher, tmp_path):
    params = gkd.Params(teacher=str(teacher), lmbda=0.5, learning_rate=0.02, num_train_epochs=8, **PARAMS)
    weights = gkd.METHOD.fit(tiny_methods.context(tiny, tmp_path), params)
    losses, distances = ([y for _, y in c] for c in (weights.training.loss, weights.training.validation_loss))
    assert len(distances) == 8
    assert distances[-1] < distances[0]
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
    assert weights.kind == "adapter"
    assert weights.training.others["teacher"] == resolve(str(teacher)).weights_digest


def test_a_teacher_of_another_vocabulary_is_refused_with_both_sizes(tiny, stranger):
    base, wrong = resolve(str(tiny)), resolve(str(stranger))
    n = len(tiny_model.tokenizer())
    assert (
        gkd.teacher_problem(wrong, base) == f"another vocabulary: {n + 1} tokens, {n} of them the base's {n}"
    )
    assert "nothing to teach" in gkd.teacher_problem(base, base)


@pytest.mark.e2e
def test_an_experiment_trains_on_a_teacher_and_refuses_what_cannot_teach(tiny, teacher, stranger, tmp_path):

    def candidates(*folders):
        knobs = "r: 2, max_steps: 3, max_new_tokens: 4, max_length: 200"
        recipes = (f"{{method: gkd, params: {{teacher: {folder}, {knobs}}}}}" for folder in folders)
        return "".join(f"  taught-{i}: {recipe}\n" for i, recipe in enumerate(recipes))

    wrong = tiny_experiment.write(tmp_path / "wrong", tiny, candidates(stranger, tmp_path / "absent"))
    with pytest.raises(UserError) as error:
        tiny_experiment.run(wrong, "suites=[]")
    for message in (
        "another vocabulary",
        "harness data distill",
        *(f"taught-{i}: params.teacher" for i in (0, 1)),
    ):
        assert message in str(error.value)
    path = tiny_experiment.write(tmp_path / "right", tiny, candidates(teacher))
    tiny_experiment.run(path, "suites=[]")
    run = tiny_experiment.runs_of(path)["taught-0"]
    assert run.training.others["teacher"] == resolve(str(teacher)).weights_digest
