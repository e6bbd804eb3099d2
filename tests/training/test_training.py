"""Training: loss of completions alone, determined by the seed, packed or not, in this process or another."""

import errno
import json
import pickle
import re
import subprocess
from contextlib import contextmanager
from dataclasses import replace

import pytest
import tiny_experiment
import tiny_methods
from fake_facts import make_fine_tune
from forking import terminal_signals
from pydantic import ValidationError
from tiny_methods import CPU, fit, ignore, read_fit

from harness import plugins, training
from harness.errors import CandidateFailed, Problem, UserError
from harness.experiment.candidate_weights import ensure_weights, has_own_process
from harness.methods.supervised import Lora
from harness.methods.text_classifiers import Classifier
from harness.models.cpu_kernels import chunk_attention
from harness.models.hardware import Machine, reset_peak
from harness.models.hf import ModelHost
from harness.models.hub import ModelSource
from harness.records import Example, PromptText, TrackedPoint, TrainingRecord, Trial
from harness.report import ExperimentReport, html
from harness.report.training_tables import compare_rates, curves, describe_forgetting, diagnose
from harness.spec import TrainingPolicy
from harness.training import CHECKPOINTS, job_worker, sft, trainer
from harness.training import job as jobs
from harness.training.context import resident_peak_bytes
from harness.training.tokenized import FEWEST_STEPS, keeps_rows_apart

pytestmark = pytest.mark.usefixtures("own_cache")


GPU = Machine("cuda", "A100", "bf16", 200_000.0)
LLAMA_2_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip
QUICK = {"r": 2, "learning_rate": 0.01, "num_train_epochs": 1, "warmup_steps": 0}


@pytest.fixture
def context(tiny, own_cache, tmp_path):
    return tiny_methods.context(tiny, tmp_path)


def fit_lora(context, folder="", **params):
    context = replace(context, folder=context.folder / folder)
    context.folder.mkdir(exist_ok=True)
    return Lora.METHOD.fit(context, Lora.Params(**{**QUICK, **params}))


@pytest.mark.e2e
def test_training_lowers_the_loss_and_keeps_token_accuracy_and_learning_rate_by_step(context):
    figures = fit_lora(context, num_train_epochs=8, learning_rate=0.02).training
    losses = [loss for _, loss in figures.loss]
    assert losses[-1] < 0.8 * losses[0]
    validation = [loss for _, loss in figures.validation_loss]
    assert figures.best_validation_loss == min(validation) < validation[0]
    assert [step for step, _ in figures.learning_rate] == [step for step, _ in figures.loss]
    assert figures.learning_rate[-1][1] < max(rate for _, rate in figures.learning_rate) <= 0.02
    accuracies = [share for _, share in figures.token_accuracy]
    assert accuracies[0] < accuracies[-1] <= 1
    assert len(figures.validation_token_accuracy) == len(figures.validation_loss)


@pytest.mark.parametrize("chat", [True, False])
def test_only_the_completion_counts_in_the_loss(context, chat):
    one_row = replace(context, train=context.train[:1], chat_template=chat)
    first = fit_lora(one_row, lora_dropout=0.0).training.loss[0][1]
    candidate = ModelHost(context.source, CPU).base
    example = context.train[0]
    end = "<|im_end|>\n" if chat else "<|im_end|>"
    gap = "" if chat else " "
    written = PromptText(example.messages, f"{gap}{example.references[0]}{end}", chat, is_written=True)
    (encoded,) = candidate.encode_all([written])
    expected = -candidate.loglikelihood([encoded[:2]])[0].logprob / len(encoded.continuation)
    assert first == pytest.approx(expected, abs=1e-3)


def test_a_training_reports_its_steps_keeps_what_was_measured_and_leaves_only_the_adapter(context):
    progress = []
    weights = fit_lora(replace(context, advance=lambda *args: progress.append(args)))
    assert [(step, total) for step, total, _ in progress] == [(1, 2), (2, 2)]
    assert progress[0][2].startswith("loss ")
    assert (weights.kind, weights.folder) == ("adapter", context.folder)
    assert {p.name for p in context.folder.iterdir()} == {"adapter", CHECKPOINTS}
    figures = weights.training
    assert min(figures.n_trainable, figures.n_tokens, figures.peak_memory_gib, figures.train_loop_s) > 0
    assert figures.wall_s >= figures.train_loop_s
    assert (figures.n_steps, figures.n_dropped_too_long) == (2, 0)


def test_rows_that_are_too_long_are_left_out_and_counted(context):
    long = Example("long", ({"role": "user", "content": "parcel " * 50},), ("late",))
    beside = replace(context, train=(long, *context.train))
    with_long, without = fit_lora(beside, "a", max_length=60), fit_lora(context, "b", max_length=60)
    assert with_long.training.n_dropped_too_long == 1
    assert with_long.digest == without.digest


def test_with_no_row_that_fits_the_candidate_fails_and_names_the_knob(context):
    long = Example("long", ({"role": "user", "content": "parcel " * 50},), ("late",))
    with pytest.raises(CandidateFailed, match=r"longer than 60 tokens; try: a larger params\.max_length"):
        fit_lora(replace(context, train=(long,)), max_length=60)


def test_the_best_checkpoint_is_kept_not_the_last(context):
    """At a learning rate of 1 the later epochs are far worse than an early one."""
    figures = fit_lora(context, num_train_epochs=3, learning_rate=1.0, early_stopping_patience=3).training
    validation = [loss for _, loss in figures.validation_loss]
    host = ModelHost(context.source, CPU)
    with host.use_adapter(context.folder / "adapter", "kept") as candidate:
        losses = []
        for example in context.validation:
            written = PromptText(example.messages, f"{example.references[0]}<|im_end|>\n", is_written=True)
            (encoded,) = candidate.encode_all([written])
            losses.append(-candidate.loglikelihood([encoded[:2]])[0].logprob / len(encoded.continuation))
    assert sum(losses) / len(losses) == pytest.approx(min(validation), rel=0.05)
    assert min(validation) < 0.9 * max(validation)


@pytest.mark.parametrize(("precision", "dropout"), [("bfloat16", 0.0), ("bfloat16", 0.5)])
def test_an_adapter_reads_what_autocast_made_narrow_with_the_same_gradients(tiny, precision, dropout):
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.profiler import profile
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=getattr(torch, precision))
    config = LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear", init_lora_weights=False)
    model, ids = get_peft_model(base, config).train(), torch.arange(40).view(2, 20)
    trainer._keep_updates(model)

    def step():
        torch.manual_seed(0)
        with profile() as profiled, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            model(input_ids=ids, labels=ids).loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        return gradients, sum(event.name == "aten::_to_copy" for event in profiled.events())

    plain, n_copies = step()
    trainer._spare_casts(model)
    spared, n_fewer = step()
    assert all(torch.equal(spared[name], gradient) for name, gradient in plain.items())
    n_layers = sum(".lora_A." in name for name in plain)
    narrowed = precision == "bfloat16" and not dropout
    assert n_copies - n_fewer >= 2 * n_layers if narrowed else n_copies == n_fewer
    with torch.no_grad():  # without autocast an adapter still widens its inputs
        assert model(input_ids=ids).logits.isfinite().all()


@pytest.mark.parametrize(
    ("config", "batch", "free_gib", "again"),
    [
        (LLAMA_2_7B, 4, 40.0, True),
        (LLAMA_2_7B, 4, 80.0, False),
        ({}, 1, 1000.0, True),  # a base whose shape is unknown
    ],
)
def test_activations_are_computed_again_where_memory_is_short(tmp_path, config, batch, free_gib, again):
    """An adapter of Llama-2-7B on rows of 2,048 tokens takes 29 GB with batch 1, 56 with 4, 165 with 16."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = ModelSource("llama", tmp_path, "a", "b", 6_738_415_616)
    context = tiny_methods.context("", tmp_path / "made", source=source, machine=GPU)
    params = Lora.Params(per_device_train_batch_size=batch, max_length=2048)
    assert trainer.checkpoints_activations(context, params, None, free_gib) is again


def test_the_classifier_keeps_texts_and_labels_needs_two_and_the_same_give_one_digest(context, tmp_path):
    weights = Classifier.METHOD.fit(context, Classifier.Params())
    assert weights.training.others["n_examples"] == len(context.train)
    assert Classifier.METHOD.fit(context, Classifier.Params()).digest == weights.digest
    assert Classifier.METHOD.fit(context, Classifier.Params(C=1.0)).digest != weights.digest
    open_set = replace(context, train=tiny_methods.examples(slice(0, 2), choices=()))
    with pytest.raises(CandidateFailed, match="closed label set"):
        Classifier.METHOD.fit(open_set, Classifier.Params())
    one_label = replace(context, train=context.train[:2])
    with pytest.raises(CandidateFailed, match="training rows of one label alone"):
        Classifier.METHOD.fit(one_label, Classifier.Params())


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_a_method_refuses_a_parameter_it_does_not_know(name):
    with pytest.raises(ValidationError):
        plugins.load("methods", name).Params(no_such_parameter=1)


EPOCH = 40


def make_falling_loss(to, start=2.0, n=EPOCH, level_from=0.5):
    reach = int(n * level_from)
    return tuple((i + 1, max(to, start - (start - to) * i / reach)) for i in range(n))


def record(loss, validation=(), **more):
    return TrainingRecord(loss=loss, validation_loss=validation, **more)


SLOW = make_falling_loss(0.2, n=4 * EPOCH, level_from=1.0)
OVERFITTING = tuple((EPOCH * (i + 1), value) for i, value in enumerate((1.2, 0.9, 1.1, 1.4)))


@pytest.mark.parametrize(
    ("training", "kind", "said"),
    [
        (record(make_falling_loss(0.5), ((EPOCH, 0.6),)), "fits", "levelled off at 0.500, validation loss 0.600"),
        (record(SLOW, OVERFITTING), "overfits",
         "from 1.162 to 0.262; fewer epochs, more rows or, of LoRA, a lower r and lora_alpha or lora_dropout may help"),
        (record(SLOW, ((4 * EPOCH, 0.8),)), "fits",
         "in the last round, far below a validation loss of 0.800; more epochs may overfit"),
        (record(SLOW, ((4 * EPOCH, 0.3),)), "underfits", "in the last round; more epochs may help"),
        (record([(i, 0.5 + 0.1 * i) for i in range(1, 41)], ((EPOCH, 1.0),)), "rises", "; a lower learning rate may help"),
        (record([(i, 0.02) for i in range(1, 41)], ((EPOCH, 0.02),)), "fits", "does not underfit"),
        (record([(i, 2.0 - 0.001 * i) for i in range(1, 41)], ((EPOCH, 1.0),)), "underfits", "a higher learning rate"),
    ],
)  # fmt: skip
def test_losses_say_whether_a_training_fits_overfits_or_underfits_and_from_which_step(training, kind, said):
    diagnosis, sentence = diagnose(training)
    assert diagnosis == kind
    assert said in sentence


def test_losses_below_zero_are_drawn_within_the_axis():
    drawn = curves("grpo", TrainingRecord(loss=((1, -0.5), (2, -0.4))), "grpo")
    ((first, second),) = re.findall(r'0,([\d.]+) [\d.]+,([\d.]+)" class="batch"', drawn)
    assert float(first) > float(second)  # further down


def test_of_a_sweep_of_rates_a_sentence_beside_the_curves_says_which_falls_fastest_and_which_is_best():
    rates = {3e-5: (0.8, 1.4, 1.35), 3e-4: (0.4, 1.1, 0.9), 3e-3: (0.1, 0.9, 1.4)}
    trials = [
        Trial(
            params={"learning_rate": rate},
            validation=0.5,
            loss=tuple((i + 1, 2.0 - (2.0 - low) * i / 79) for i in range(80)),
            validation_loss=tuple((20 * (i + 1), start + (end - start) * i / 3) for i in range(4)),
        )
        for rate, (low, start, end) in rates.items()
    ]
    lora = make_fine_tune("lora", 0.8, 0.1, training=record(trials[1].loss, sweep=tuple(trials)))
    page = html(ExperimentReport("desk", "tiny", "exact_match", (lora,)))
    (inside,) = re.findall(r"<h2>Training</h2>(.*?)</section>", page, re.DOTALL)
    sentence = "<li>lora: By step 40 training loss fell fastest with learning_rate 0.003, to 1.110; best "
    sentence += "without overfitting is learning_rate 0.0003, validation loss 0.900; 1 of 3 overfit.</li>"
    assert inside.index("</svg>") < inside.index(sentence)
    assert compare_rates(TrainingRecord(sweep=tuple(trials[:1]))) == ""


@pytest.mark.parametrize(
    "training",
    [TrainingRecord(), record(((1, 2.0),)), record(make_falling_loss(0.5), reward_margin=((1, 0.1),))],
)
def test_losses_that_do_not_say_are_not_diagnosed(training):
    assert diagnose(training) is None


def make_changes(*changes, half=0.02):
    every = 100 // len(changes)
    points = (
        {"step": every * i, "capability": x, "low": x - half, "high": x + half}
        for i, x in enumerate(changes, start=1)
    )
    tracked = tuple(TrackedPoint(target=0.5, n_general=99, **point) for point in points)
    return TrainingRecord(n_steps=100, tracked=tracked)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((-0.05, -0.06, -0.07, -0.08), "forgets early: capability −5.0 [−7, −3] points at step 25 of 100"),
        ((0.0, -0.01, -0.03, -0.08), "forgets late: capability −8.0 [−10, −6] points at step 100"),
        ((0.0, -0.01, 0.0, -0.015), "is not seen to forget: capability −1.5 [−4, +1] points"),
    ],
)
def test_points_along_a_training_say_whether_it_forgets_and_when(changes, said):
    assert describe_forgetting(make_changes(*changes)).startswith(said)


# All twelve rows in one batch, packed or not.
STEPS = {"max_steps": FEWEST_STEPS, "learning_rate": 1e-3, "max_length": 80}
ALONE = {"per_device_train_batch_size": 12, **STEPS}


@pytest.mark.weekly
def test_packed_rows_have_the_losses_of_rows_alone(tiny, tmp_path):
    alone = fit(tiny, tmp_path / "alone", Lora, {"r": 2, **ALONE}).training
    packed = fit(tiny, tmp_path / "packed", Lora, {"r": 2, **ALONE, "packing": True}).training
    assert 1 < packed.others["n_packs"] < 12
    for name in ("loss", "validation_loss"):
        assert [loss for _, loss in getattr(packed, name)] == pytest.approx(
            [loss for _, loss in getattr(alone, name)], abs=1e-4
        )
    assert packed.loss[-1][1] < 0.9 * packed.loss[0][1]
    assert packed.n_tokens == alone.n_tokens


@pytest.fixture
def rows():
    import torch

    alone = [torch.arange(5, 5 + n) for n in (4, 9, 2)]
    return alone, torch.cat(alone)[None], torch.cat([torch.arange(len(row)) for row in alone])[None]


@contextmanager
def set_attention(model, attention):
    if attention == "in parts":
        with chunk_attention(model):
            yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    yield
    model.set_attn_implementation(before)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "in parts"])
def test_a_packed_row_is_read_as_if_it_were_alone(model, rows, attention):
    import torch

    alone, ids, positions = rows
    with set_attention(model, attention), torch.no_grad():
        expected = torch.cat([model(row[None], use_cache=False).logits[0] for row in alone])
        packed = model(ids, position_ids=positions, use_cache=False).logits[0]
    assert torch.allclose(packed, expected, atol=1e-5)


def test_a_model_is_known_by_its_answers_to_keep_packed_rows_apart_or_not(model):
    assert keeps_rows_apart(model)

    def forward_blindly(input_ids, position_ids, use_cache):
        return model(input_ids, use_cache=use_cache)  # all rows as one, as without positions

    forward_blindly.device = model.device
    assert not keeps_rows_apart(forward_blindly)


@pytest.mark.e2e
def test_rows_are_not_packed_where_too_few_steps_would_be_left(tiny, tmp_path):
    params = {"r": 2, "num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    alone = fit(tiny, tmp_path / "alone", Lora, params).training
    packed = fit(tiny, tmp_path / "packed", Lora, {**params, "packing": True}).training
    assert packed.loss == alone.loss
    assert packed.not_packed == "would leave 2 optimiser steps, fewer than 100"


# What a GPU's training computes, on a CPU


def loss_of(tiny, tmp_path, kind, *, packing):
    """Return the losses of one batch of three rows by this kind of trainer, and the inputs of its model."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    ids = [list(range(5, 5 + n)) for n in (6, 11, 4)]
    rows = [{"input_ids": row, "completion_mask": [0, 0] + [1] * (len(row) - 2)} for row in ids]
    args = SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=3, max_length=12, packing=packing,
        completion_only_loss=True, use_cpu=True, bf16=False, report_to="none",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny)
    trainer = kind(
        model=model,
        args=args,
        processing_class=AutoTokenizer.from_pretrained(tiny),
        train_dataset=Dataset.from_list(rows),
    )
    if packing:
        sft.batch_packs(trainer.data_collator)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["input_ids"]) == (2 if packing else 3), "packs keep rows of their own"
    return trainer.compute_loss(trainer.model, batch).item()


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_of_a_gpus_training_is_that_of_a_cpus(tiny, tmp_path, packing):
    tiled, whole = (
        loss_of(tiny, tmp_path, kind(), packing=packing)
        for kind in (sft.make_tiled_loss_trainer, sft.whole_loss_trainer)
    )
    alone = loss_of(tiny, tmp_path, sft.whole_loss_trainer(), packing=False)
    assert tiled == pytest.approx(whole, abs=1e-5)
    assert tiled == pytest.approx(alone, abs=1e-5)


LORA = {"r": 2, "per_device_train_batch_size": 2, "num_train_epochs": 1, "max_length": 200}
KNOBS = "params.per_device_train_batch_size (with gradient_accumulation_steps) or max_length"


def write_job(tiny, folder, method="lora", params=LORA):
    return tiny_methods.write_job(tiny, folder, method, params, threads=training.threads_of(method))


def start_worker(folder):
    return subprocess.Popen(
        [*job_worker.COMMAND, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def local_fit(tiny, tmp_path_factory, own_cache):
    """Train a LoRA adapter in this process, uninterrupted; returns its record."""
    folder = write_job(tiny, tmp_path_factory.mktemp("here"))
    training.run_job(folder, ignore)
    return read_fit(folder)


@pytest.mark.e2e
def test_the_peak_of_a_training_leaves_out_what_this_process_held_before(tiny, tmp_path):
    if not reset_peak():
        pytest.skip("this system cannot reset the peak")
    ballast = bytearray(b"x") * 2**30
    before = resident_peak_bytes()
    del ballast
    training.run_job(folder := write_job(tiny, tmp_path), ignore)
    measured = read_fit(folder)["training"]
    assert measured["peak_memory_gib"] < before / 2**30 - 0.5
    assert "peak_includes" not in measured
    assert 0 <= measured["waited_share"] <= 1


@pytest.mark.slow
def test_a_killed_worker_leaves_a_checkpoint_from_which_the_same_weights_come(tiny, local_fit, tmp_path):
    folder = write_job(tiny, tmp_path)
    with start_worker(folder) as process:
        steps = (json.loads(line)[1] for line in process.stdout)
        assert next(step for step in steps if step == 4)
        process.kill()
        assert process.wait() == -9
    assert not (folder / training.FIT).exists()
    heard = []
    training.run_job(folder, lambda n, total, note="": heard.append(n))
    assert heard[0] > 1
    assert read_fit(folder)["digest"] == local_fit["digest"]


@pytest.mark.e2e
def test_a_failure_there_is_the_failure_of_here_and_the_workers_exit_code(tiny, tmp_path):
    failure = "interpolated without init_from; try: init_from: the candidate that is meant"
    folder = write_job(tiny, tmp_path, "interpolated", {})
    with pytest.raises(CandidateFailed) as failed:
        training.run_job(folder, ignore)
    assert str(failed.value) == failure
    with start_worker(folder) as process:
        _, stderr = process.communicate()
    assert process.returncode == CandidateFailed.exit_code
    assert stderr.splitlines()[-1] == f"error: {failure}"


def test_what_a_launcher_prints_goes_to_the_log_and_not_into_the_progress(tmp_path):
    printed = """[2026-11-23 18:10:19] [WARNING] no GPU\n["advance", 1, 2, "loss 0.5"]\n{"a": 1}\n[]\n"""
    (tmp_path / "said").write_text(printed)
    heard = []
    command = ("bash", "-c", f"cat {tmp_path / 'said'}")  # the folder that is added is its $0
    job_worker.launch(tmp_path, lambda *message: heard.append(message), command)
    assert heard == [(1, 2, "loss 0.5")]
    warning, *other_lines = (tmp_path / jobs.LOG).read_text().splitlines()
    assert (warning, other_lines) == ("[2026-11-23 18:10:19] [WARNING] no GPU", ['{"a": 1}', "[]"])


@pytest.mark.parametrize(
    ("script", "error", "told"),
    [
        ("kill -KILL $$", CandidateFailed, rf"SIGKILL\), as the system does when memory runs out; try: {KNOBS}"),
        ("kill -TERM $$", CandidateFailed, "ended with SIGTERM; try: the same command again"),
        ("kill -INT $$; sleep 5", KeyboardInterrupt, "^$"),
        ("echo no such module >&2; exit 7", CandidateFailed, "ended with exit code 7: no such module"),
    ],
)  # fmt: skip
@terminal_signals()
def test_a_worker_that_ends_without_a_word_says_why_by_its_exit_code(tmp_path, script, error, told):
    expected = told.replace("(with gradient_accumulation_steps)", r"\(with gradient_accumulation_steps\)")
    with pytest.raises(error, match=expected):
        job_worker.launch(tmp_path, ignore, ("bash", "-c", script))


@pytest.mark.parametrize(
    "error",
    [
        CandidateFailed("out of memory while training", KNOBS),
        UserError([Problem("a", "b", "c", "d"), Problem("e", "f", "g", "h")]),
        OSError(errno.ENOSPC, "No space left on device", "adapter.safetensors"),
    ],
)
def test_an_error_comes_back_as_it_was_from_a_worker_and_from_another_process(error):
    again = job_worker.decode_error(*json.loads(json.dumps(job_worker.encode_error(error))))
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


@pytest.mark.e2e
def test_the_key_trains_in_a_process_of_its_own_into_the_same_folder(tiny, tmp_path):
    trained = {}
    for process in ("same", "own"):
        path = tiny_experiment.write(tmp_path / process, tiny, extra=f"training: {{process: {process}}}\n")
        session = tiny_experiment.session(path)
        candidate = session.candidates["lora"]
        weights = ensure_weights(session, candidate, 0)
        trained[process] = weights.digest, weights.folder.name, weights.training.loss
        assert sorted(p.name for p in weights.folder.iterdir()) == ["adapter", training.FIT, jobs.JOB]
    assert trained["own"] == trained["same"]


def test_on_a_gpu_and_if_it_is_long_a_training_has_a_process_of_its_own_unless_told_otherwise():
    for device, expected_s, auto in (("cpu", 5.0, False), ("cpu", 60.0, True), ("cuda", 5.0, True)):
        own = [
            has_own_process(TrainingPolicy(process=name), device, expected_s)
            for name in ("auto", "same", "own")
        ]
        assert own == [auto, False, True]
