"""Ways to train: knobs by their names, all weights, checkpoints that go on undisturbed, and every marked turn."""

from dataclasses import replace
from functools import partial

import pytest
import tiny_experiment
import tiny_methods
import tiny_model
from tiny_methods import CPU, Interrupted, host_of, stop_at
from tiny_model import ASKED

from harness import plugins, regularizers
from harness.errors import CandidateFailed, UserError
from harness.experiment.bases import _MARKED
from harness.methods import bottleneck, dpo, full, lora, spectrum
from harness.models.deltas import WEIGHTS
from harness.records import Example
from harness.training import CHECKPOINTS
from harness.training.sft import SupervisedParams, _rows, smaller_batch_size

pytestmark = pytest.mark.usefixtures("own_cache")


QUICK = {"r": 2, "learning_rate": 0.01, "num_train_epochs": 1, "warmup_steps": 0}


def fit_tiny(tiny, folder, method=lora, prepare=lambda model: None, advance=tiny_methods.ignore, **params):
    return tiny_methods.fit(tiny, folder, method, {**QUICK, **params}, prepare=prepare, advance=advance)


@pytest.mark.e2e
@pytest.mark.parametrize(("method", "optim"), [(lora, "paged_adamw_8bit"), (dpo, "lion_8bit")])
def test_an_optimiser_is_taken_by_its_name(tiny, tmp_path, method, optim):
    plain = fit_tiny(tiny, tmp_path / "plain", method)
    assert fit_tiny(tiny, tmp_path / optim, method, optim=optim).digest != plain.digest


@pytest.mark.e2e
def test_the_best_of_the_measured_steps_is_saved(tiny, tmp_path):
    """At this rate every later step is worse."""
    many = {"per_device_train_batch_size": 1, "lr_scheduler_type": "constant", "early_stopping_patience": 2}
    made = fit_tiny(tiny, tmp_path, learning_rate=1.0, eval_steps=1, **many)
    losses = [loss for _, loss in made.training.validation_loss]
    assert made.training.n_steps < 12
    assert losses.index(min(losses)) == len(losses) - 3


def count_rows(options):
    """Count the rows of a batch, of joined rows by their last tokens, which no other token sees."""
    if "position_ids" not in options:
        return len(options["input_ids"])
    return int(((options["attention_mask"][0, 0] == 0).sum(0) == 1).sum())


def limit_memory(rows, seen=None):
    """Return what lets a model run out of memory where it reads more than so many rows at once."""
    import torch

    def check(module, given, options):
        n_read = count_rows(options)
        if module.training and n_read > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if seen is not None and module.training:
            seen.append(n_read)

    return lambda model: model.register_forward_pre_hook(check, with_kwargs=True)


@pytest.mark.e2e
@pytest.mark.parametrize("method", [lora, full])
def test_a_batch_that_memory_is_not_enough_for_is_read_in_parts(tiny, tmp_path, method):
    params = {**QUICK, "per_device_train_batch_size": 6}
    if method is full:
        del params["r"]
    whole = tiny_methods.fit(tiny, tmp_path / "whole", method, params).training
    params["auto_find_batch_size"] = True
    parts = tiny_methods.fit(tiny, tmp_path / "parts", method, params, prepare=limit_memory(2)).training
    assert (parts.batch_size, parts.accumulated_batches) == (2, 3)  # by way of 3 and 2
    assert parts.n_steps == whole.n_steps
    assert (whole.batch_size, whole.accumulated_batches) == (None, None)
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("parts", "whole")]
    assert files[0] == files[1]


@pytest.mark.e2e
def test_a_training_that_is_begun_again_with_smaller_batches_names_each_type_of_matrix_once(tiny, tmp_path):
    params = {name: value for name, value in QUICK.items() if name != "r"}
    known = tiny_methods.fit(tiny, tmp_path / "whole", spectrum, params)
    params["auto_find_batch_size"] = True
    parts = tiny_methods.fit(tiny, tmp_path / "parts", spectrum, params, prepare=limit_memory(2))
    assert parts.training.batch_size
    assert parts.training.scan == known.training.scan


@pytest.mark.e2e
def test_memory_for_no_row_and_other_failures_fail_as_before(tiny, tmp_path):
    with pytest.raises(CandidateFailed, match="out of memory while training"):
        fit_tiny(tiny, tmp_path / "none", prepare=limit_memory(0), auto_find_batch_size=True)
    with pytest.raises(CandidateFailed, match="out of memory while training"):
        fit_tiny(tiny, tmp_path / "not asked", prepare=limit_memory(2))
    with pytest.raises(CandidateFailed, match="longer than"):
        fit_tiny(tiny, tmp_path / "long", max_length=8, auto_find_batch_size=True)


@pytest.mark.e2e
def test_a_training_that_was_stopped_goes_on_with_the_batch_size_that_it_found(tiny, tmp_path):
    many = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "auto_find_batch_size": True}
    whole = fit_tiny(tiny, tmp_path / "whole", prepare=limit_memory(2), **many)
    with pytest.raises(Interrupted):
        fit_tiny(tiny, tmp_path / "cut", prepare=limit_memory(2), advance=stop_at(4), **many)
    assert any((tmp_path / "cut" / CHECKPOINTS).glob("checkpoint-*"))
    seen = []
    assert fit_tiny(tiny, tmp_path / "cut", prepare=limit_memory(2, seen), **many).digest == whole.digest
    assert set(seen) == {2}


@pytest.mark.parametrize(
    ("size", "n_rows", "smaller"),
    [(8, 8, 4), (8, 32, 4), (6, 6, 3), (3, 6, 2), (6, 12, 4), (7, 7, 1), (1, 8, 0)],
)
def test_smaller_batches_make_up_the_rows_of_a_step(size, n_rows, smaller):
    assert smaller_batch_size(size, n_rows) == smaller


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

    inner, seen = Trainer.training_step, []

    def record_types(self, *args, **kwargs):
        state = self.optimizer.optimizer.state.values()
        remembered = [v for of in state for name, v in of.items() if name in ("exp_avg", "state1")]
        seen.append(({str(p.dtype) for p in self.model.parameters()}, {str(v.dtype) for v in remembered}))
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", record_types)
    context = tiny_methods.context(tiny, tmp_path, machine=tiny_methods.CPU._replace(precision="bf16"))
    made = full.fit(context, full.Params(**params, max_steps=3, warmup_steps=0, learning_rate=0.01))
    assert made.training.loss[-1][1] < made.training.loss[0][1]
    assert {kind for kinds, _ in seen for kind in kinds} == {weights}
    assert seen[-1][1]
    assert seen[-1][1] <= moments


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def changed(tiny, folder, precision="fp32", regularize=None):
    """Train, and return the names of the tensors that changed."""
    prepare = partial(regularizers.prepare, regularize or {})
    context = tiny_methods.context(tiny, folder, machine=CPU._replace(precision=precision), prepare=prepare)
    made = full.fit(context, full.Params(learning_rate=0.01, num_train_epochs=1))
    before, after = tensors(tiny), tensors(made.folder / "model")
    assert before.keys() == after.keys()
    return {name for name in before if not after[name].float().equal(before[name])}, made


def test_every_tensor_is_trained(tiny, tmp_path):
    names, made = changed(tiny, tmp_path)
    assert names == set(tensors(tiny))
    assert made.kind == "model"
    assert {p.name for p in tmp_path.iterdir()} == {"model", CHECKPOINTS}
    assert made.training.n_trainable == sum(t.numel() for t in tensors(tiny).values())


def test_the_folder_is_a_model_like_any_other_in_the_precision_that_is_served(tiny, tmp_path):
    import torch

    _, made = changed(tiny, tmp_path, "bf16")
    assert {t.dtype for t in tensors(made.folder / "model").values()} == {torch.bfloat16}
    host = host_of(made.folder / "model", "bf16")
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


@pytest.mark.parametrize(
    ("method", "own"), [(bottleneck, {"bottleneck_size": 4}), (spectrum, {"share": 0.5})]
)
def test_the_checkpoint_with_the_best_validation_loss_is_what_is_saved(tiny, tmp_path, method, own):
    """The validation rows want answers of which each round knows less."""
    from safetensors.torch import load_file

    rows = tiny_methods.examples(slice(5, 6))
    others = tuple(replace(row, references=("brown hen at noon",)) for row in rows)
    params = {
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 5,
        "warmup_steps": 0,
    }
    params |= {"per_device_train_batch_size": 2, **own}
    made = tiny_methods.fit(tiny, tmp_path, method, params, validation=others)
    losses = dict(made.training.validation_loss)
    best = min(losses, key=losses.get)
    assert best < max(losses)
    checkpoint = load_file(tmp_path / CHECKPOINTS / f"checkpoint-{best}" / "model.safetensors")
    assert sum(tensor.numel() for tensor in checkpoint.values()) == made.training.n_trainable
    saved = load_file(tmp_path / "delta" / WEIGHTS)
    plain = {
        key.removeprefix("bottleneck_layers.").removesuffix(".weight"): t for key, t in checkpoint.items()
    }
    assert len(plain) == len(saved)
    assert all(t.equal(plain[key.removesuffix(".weight")]) for key, t in saved.items())


MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES, TEXTS = ("user", "assistant", "user"), ("one", "two", "three")
TURNS = Example("two", tuple({"role": r, "content": t} for r, t in zip(ROLES, TEXTS, strict=True)), ("four",))


def read_learnt_text(tmp_path, *, every):
    """Return the text that is learnt of two turns."""
    tokenizer = tiny_model.tokenizer(MARKED)
    context = tiny_methods.context(tiny_model.build(tmp_path / "base", template=MARKED), tmp_path / "fit")
    params = SupervisedParams(assistant_only_loss=every)
    ((row,), _) = _rows([TURNS], context, tokenizer, params)
    return tokenizer.decode([i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m])


def test_each_turn_of_the_assistant_is_learnt_and_nothing_else(tmp_path):
    assert read_learnt_text(tmp_path, every=True) == "two<|im_end|>four<|im_end|>"
    assert read_learnt_text(tmp_path, every=False).strip() == "four<|im_end|>"


@pytest.mark.e2e
def test_a_training_on_marked_turns_makes_other_weights(tmp_path):
    base = tiny_model.build(tmp_path / "base", template=MARKED)
    method, digests = plugins.method("lora"), set()
    for every in (True, False):
        context = tiny_methods.context(base, tmp_path / str(every))
        turns = TURNS.messages[:2]
        two = tuple(replace(row, messages=(*turns, *row.messages)) for row in context.train)
        params = method.params(r=2, max_steps=3, max_length=250, assistant_only_loss=every)
        digests.add(method.fit(replace(context, train=two), params).digest)
    assert len(digests) == 2


@pytest.mark.parametrize("written", ["{% generation %}", "{%- generation -%}", "{%generation%}"])
def test_a_marker_is_found_however_it_is_written(written):
    assert _MARKED.search(f"a {written} b")
    assert not _MARKED.search("add_generation_prompt {% if generation %}")


def test_a_template_without_markers_is_refused_before_anything_runs(tiny, tmp_path):
    candidates = "  prompt: {method: base}\n  lora: {method: lora, params: {assistant_only_loss: true}}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    with pytest.raises(UserError, match="does not mark the assistant's words"):
        tiny_experiment.run(path)
    assert not (tmp_path / "runs" / "weights").exists()
    with pytest.raises(UserError, match="chat_template: false"):
        tiny_experiment.run(path, "target.chat_template=false")
