"""Ways to train: knobs by their names, all weights, checkpoints that go on undisturbed, and every marked turn."""

from functools import partial

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from tiny_methods import CPU, host_of
from tiny_model import ASKED

from harness import regularizers
from harness.errors import UserError
from harness.methods.supervised import Full, Lora
from harness.records import Example
from harness.training import CHECKPOINTS
from harness.training.sft import SupervisedParams, _rows

pytestmark = pytest.mark.usefixtures("own_cache")


QUICK = {"r": 2, "learning_rate": 0.01, "num_train_epochs": 1, "warmup_steps": 0}


def fit_tiny(tiny, folder, method=Lora, prepare=lambda model: None, advance=tiny_methods.ignore, **params):
    return tiny_methods.fit(tiny, folder, method, {**QUICK, **params}, prepare=prepare, advance=advance)


@pytest.mark.e2e
def test_the_best_of_the_measured_steps_is_saved(tiny, tmp_path):
    """At this rate every later step is worse."""
    many = {"per_device_train_batch_size": 1, "lr_scheduler_type": "constant", "early_stopping_patience": 2}
    trained = fit_tiny(tiny, tmp_path, learning_rate=1.0, eval_steps=1, **many)
    losses = [loss for _, loss in trained.training.validation_loss]
    assert trained.training.n_steps < 12
    assert losses.index(min(losses)) == len(losses) - 3


@pytest.mark.parametrize(
    ("params", "weights", "moments"),
    [
        ({}, "torch.float32", {"torch.float32"}),
        ({"dtype": "bfloat16"}, "torch.bfloat16", {"torch.bfloat16"}),
        ({"dtype": "bfloat16", "optim": "adamw_8bit"}, "torch.bfloat16", {"torch.uint8", "torch.float32"}),
    ],
)
def test_a_whole_model_is_trained_in_the_type_that_is_written(
    tiny, tmp_path, monkeypatch, params, weights, moments
):
    from transformers import Trainer

    inner, types = Trainer.training_step, []

    def record_types(self, *args, **kwargs):
        state = self.optimizer.optimizer.state.values()
        remembered = [v for entry in state for name, v in entry.items() if name in ("exp_avg", "state1")]
        types.append(({str(p.dtype) for p in self.model.parameters()}, {str(v.dtype) for v in remembered}))
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", record_types)
    context = tiny_methods.context(tiny, tmp_path, machine=tiny_methods.CPU._replace(precision="bf16"))
    trained = Full.METHOD.fit(context, Full.Params(**params, max_steps=3, warmup_steps=0, learning_rate=0.01))
    assert trained.training.loss[-1][1] < trained.training.loss[0][1]
    assert {kind for kinds, _ in types for kind in kinds} == {weights}
    assert types[-1][1]
    assert types[-1][1] <= moments


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def changed(tiny, folder, precision="fp32", regularize=None):
    """Train, and return the names of the tensors that changed."""
    prepare = partial(regularizers.prepare, regularize or {})
    context = tiny_methods.context(tiny, folder, machine=CPU._replace(precision=precision), prepare=prepare)
    trained = Full.METHOD.fit(context, Full.Params(learning_rate=0.01, num_train_epochs=1))
    before, after = tensors(tiny), tensors(trained.folder / "model")
    assert before.keys() == after.keys()
    return {name for name in before if not after[name].float().equal(before[name])}, trained


def test_every_tensor_is_trained(tiny, tmp_path):
    names, trained = changed(tiny, tmp_path)
    assert names == set(tensors(tiny))
    assert trained.kind == "model"
    assert {p.name for p in tmp_path.iterdir()} == {"model", CHECKPOINTS}
    assert trained.training.n_trainable == sum(t.numel() for t in tensors(tiny).values())


def test_the_folder_is_a_model_like_any_other_in_the_precision_that_is_served(tiny, tmp_path):
    import torch

    _, trained = changed(tiny, tmp_path, "bf16")
    assert {t.dtype for t in tensors(trained.folder / "model").values()} == {torch.bfloat16}
    host = host_of(trained.folder / "model", "bf16")
    assert host.base.encode(ASKED) == host_of(tiny).base.encode(ASKED)


@pytest.mark.parametrize(
    ("written", "moves"),
    [
        ({"first": 1}, lambda name: "layers.1." in name or name == "model.norm.weight"),
        ({"all_but_last": 1}, lambda name: "layers.1." in name),
    ],
)
def test_what_is_frozen_stays_as_it_was(tiny, tmp_path, written, moves):
    names, _ = changed(tiny, tmp_path, regularize={"freeze": written})
    assert names == {name for name in tensors(tiny) if moves(name)}


MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES, TEXTS = ("user", "assistant", "user"), ("one", "two", "three")
TURNS = Example("two", tuple({"role": r, "content": t} for r, t in zip(ROLES, TEXTS, strict=True)), ("four",))


def read_learnt_text(tmp_path, *, every):
    """Return the learnt text of two turns."""
    tokenizer = tiny_model.tokenizer(MARKED)
    context = tiny_methods.context(tiny_model.build(tmp_path / "base", template=MARKED), tmp_path / "fit")
    params = SupervisedParams(assistant_only_loss=every)
    ((row,), _) = _rows([TURNS], context, tokenizer, params)
    return tokenizer.decode([i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m])


def test_each_turn_of_the_assistant_is_learnt_and_nothing_else(tmp_path):
    assert read_learnt_text(tmp_path, every=True) == "two<|im_end|>four<|im_end|>"
    assert read_learnt_text(tmp_path, every=False).strip() == "four<|im_end|>"


def test_a_template_without_markers_is_refused_before_anything_runs(tiny, tmp_path):
    candidates = "  prompt: {method: base}\n  lora: {method: lora, params: {assistant_only_loss: true}}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    with pytest.raises(UserError, match="does not mark the assistant's words"):
        tiny_experiment.run(path)
    assert not (tmp_path / "runs" / "weights").exists()
    with pytest.raises(UserError, match="chat_template: false"):
        tiny_experiment.run(path, "target.chat_template=false")
