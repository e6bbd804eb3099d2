"""Regularisers: contract, names in recipes, methods that take them, and heads without a vocabulary."""

import inspect
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import tiny_experiment
import tiny_methods
import torch
import yaml
from transformers import AutoTokenizer

from harness import config, plugins, regularizers
from harness.models.hub import map_end_tokens, resolve
from harness.records import Example, SampleResult, digest
from harness.regularizers import MixContext, Start, distance
from harness.regularizers.distance import L2Sp
from harness.spec import Recipe
from harness.training import CHECKPOINTS, LoraParams, lora_config
from harness.training.heads import load_with_head
from harness.training.tokenized import tokenized_rows

pytestmark = pytest.mark.usefixtures("own_cache")

NAMES = plugins.names("regularizers")
PARTS = {*plugins.HOOKS, "sample", "cost", "problem"}
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "regularizers.md"
QUICK = {"max_steps": 3, "learning_rate": 0.01, "per_device_train_batch_size": 4, "warmup_steps": 0}


def read_documented(name):
    """Return the example of a regulariser in the docs, else in its own docstring, as a recipe writes it."""
    for text in (PAGE.read_text(), plugins.load("regularizers", name).__doc__ or ""):
        if example := re.search(rf"`regularize: (\{{{name}: [^`]*\}})`", text):
            return yaml.safe_load(example[1])
    pytest.fail(f"neither docs/howto/regularizers.md nor its docstring has `regularize: {{{name}: …}}`")


def fit_regularized(tiny, folder, regularize, advance=tiny_methods.ignore):
    """Train on the tiny model by the first method that takes the regulariser, or as `full` without one."""
    name = next(iter(regularize), None)
    able = [m for m in ("full", "lora", "dpo") if name is None or plugins.takes(plugins.method(m), name)]
    plugin = plugins.load("regularizers", name) if name else None
    mixed = tiny_methods.examples(slice(2, 4))
    prepare = partial(regularizers.prepare, regularize)
    options = {"advance": advance, "prepare": prepare, "regularize": regularize}
    options |= {"general": {name: mixed}} if hasattr(plugin, "sample") else {}
    options |= {"train": (*tiny_methods.examples(slice(0, 2)), *mixed)} if hasattr(plugin, "mix") else {}
    return tiny_methods.fit(tiny, folder, plugins.load("methods", able[0]), QUICK, **options)


@pytest.fixture(scope="module")
def plain_fit(tiny, own_cache, tmp_path_factory):
    return fit_regularized(tiny, tmp_path_factory.mktemp("plain"), {})


@pytest.mark.parametrize("name", NAMES)
def test_what_it_exports_is_known_and_takes_the_arguments_of_its_hook(name):
    plugin = plugins.load("regularizers", name)
    home = getattr(plugin, "__module__", plugin.__name__)  # a class, or the file itself
    functions = {n for n, f in inspect.getmembers(plugin, inspect.isfunction) if f.__module__ == home}
    public = {n for n in functions if not n.startswith("_")}
    assert public & set(plugins.HOOKS)
    if "sample" in public:
        assert {"mix", "penalty"} & public
    arguments = {
        "mix": ["mixture", "evaluate"], "prepare": ["model", "params"], "penalty": ["start", "params"],
        "step": ["model", "backward", "params"], "select": ["names", "progress", "params", "seed"],
        "arguments": ["params"], "smoothing": ["params"], "sample": ["context", "params"],
        "cost": ["params", "n_rows"], "problem": ["params"],
    }  # fmt: skip
    assert set(arguments) == PARTS
    for hook in public & PARTS:
        assert list(inspect.signature(getattr(plugin, hook)).parameters) == arguments[hook]


@pytest.mark.parametrize("name", NAMES)
def test_its_example_in_the_docs_is_taken_and_names_what_it_requires(name):
    plugin, written = plugins.load("regularizers", name), read_documented(name)[name]
    params = plugin.Params(**written)
    assert {key for key, field in plugin.Params.model_fields.items() if field.is_required()} <= set(written)
    assert plugin.Params.__doc__ or not plugin.Params.model_fields
    if hasattr(plugin, "cost"):
        assert plugin.cost(params, 8) > 1


NUMBERS = [
    (name, key)
    for name in NAMES
    for key, field in plugins.load("regularizers", name).Params.model_fields.items()
    if {int, float} & {field.annotation, *get_args(field.annotation)}
]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_parameters_out_of_range_are_refused(name, key):
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=key):
            plugins.load("regularizers", name).Params(**{**read_documented(name)[name], key: wrong})


@pytest.mark.parametrize("name", NAMES)
def test_it_moves_the_digest_of_weights(name):
    beside = {} if name == "replay" else {"replay": {"share": 0.1}}
    digests = [
        regularizers.regularizers_digest(written, MixContext(30, 0, {}))
        for written in (beside, read_documented(name), beside | read_documented(name))
    ]
    assert len(set(digests)) == (2 if name == "replay" else 3)


@pytest.mark.e2e
@pytest.mark.parametrize("name", NAMES)
def test_a_training_with_it_ends_elsewhere_and_in_the_same_place_after_a_stop(
    tiny, tmp_path, plain_fit, name
):
    regularize = read_documented(name)
    if name == "freeze":
        regularize = {name: {"first": 1}}  # the tiny model has two layers

    trained = fit_regularized(tiny, tmp_path / "whole", regularize)
    assert trained.digest != plain_fit.digest
    assert all(loss == loss for _, loss in trained.training.loss)
    with pytest.raises(tiny_methods.Interrupted):
        fit_regularized(tiny, tmp_path / "cut", regularize, tiny_methods.stop_at(2))
    assert any((tmp_path / "cut" / CHECKPOINTS).glob("checkpoint-*"))
    assert fit_regularized(tiny, tmp_path / "cut", regularize).digest == trained.digest


def context(n_train=30, seed=0, evaluated=()):
    return MixContext(n_train, seed, {"desk": tuple(evaluated)})


def recipe(tiny, folder, written):
    path = tiny_experiment.write(folder, tiny, f"  prompt: {{method: base}}\n  tuned: {written}\n")
    return config.load(path).experiment.candidates


FROZEN = {"freeze": {"first": 1}}


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ({"replay": 0.1}, {"replay": {"share": 0.1}}),
        ({"replay": {"share": 0.1, "data": "a.jsonl"}}, {"replay": {"share": 0.1, "data": "a.jsonl"}}),
        ({"replay": None}, {}),
        ({"replay": 0.1, "regularize": FROZEN}, {**FROZEN, "replay": {"share": 0.1}}),
        ({"regularize": "freeze"}, {"freeze": {}}),
    ],
)
def test_a_short_form_is_the_regularizer_it_stands_for(short, full):
    assert Recipe(method="full", **short) == Recipe(method="full", regularize=full)


def test_a_file_may_write_it_short_or_in_full_or_as_a_grid(tiny, tmp_path):
    short = recipe(tiny, tmp_path, "{method: lora, replay: 0.1}")["tuned"]
    assert short == recipe(tiny, tmp_path, "{method: lora, regularize: {replay: {share: 0.1}}}")["tuned"]
    assert short.regularize == {"replay": {"share": 0.1}}
    path = tiny_experiment.write(tmp_path, tiny, "  tuned: {method: lora, replay: 0.1}\n")
    for key in ("replay", "regularize.replay.share"):
        parsed = config.load(path, [f"candidates.tuned.{key}=0.3"]).experiment.candidates["tuned"]
        assert parsed.regularize == {"replay": {"share": 0.3}}
    grid = recipe(tiny, tmp_path, "{method: full, regularize: {freeze: {first: [1, 2]}}}")
    assert [grid[f"tuned[first={n}]"].regularize["freeze"] for n in (1, 2)] == [{"first": 1}, {"first": 2}]


def test_a_file_of_rows_is_digested_by_what_is_sampled_and_gives_all_of_them(tmp_path):
    rows = [{"prompt": f"Say {n}.", "reference": f"Here is {n}."} for n in range(12)]
    changed_rows = [{**row, "reference": "No."} for row in rows]
    for name, written in (("a", rows), ("b", rows), ("c", changed_rows)):
        (tmp_path / name).mkdir()
        tiny_experiment.rows(tmp_path / name / "rows.jsonl", written)
    recipes = ({"replay": {"share": 0.1, "data": str(tmp_path / name / "rows.jsonl")}} for name in "abc")
    digests = [regularizers.regularizers_digest(recipe, context()) for recipe in recipes]
    assert digests[0] == digests[1] != digests[2]
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "Who is it?", "reference": "Ada."}\n' * 2)
    mixture = regularizers.mixtures({"kl": {"data": str(path)}}, context())["kl"]
    assert (mixture.n, len(mixture.rows)) == (2, 2)


def test_prompts_that_are_evaluated_are_not_sampled():
    (first, *_) = regularizers.mixtures({"replay": {"share": 0.1}}, context())["replay"].rows
    question = Example("x", ({"role": "user", "content": first.prompt},))
    again = regularizers.mixtures({"replay": {"share": 0.1}}, context(evaluated=(question,)))["replay"]
    assert first.prompt not in {row.prompt for row in again.rows}
    assert again.n == 3


@pytest.mark.slow
def test_the_answers_of_the_embedded_base_come_with_the_package_and_are_no_other_bases():
    base = resolve("smollm2-135m")
    mixture = regularizers.mixtures({"replay": {"share": 1.0}}, context(n_train=320))["replay"]
    base_digest = digest([base.weights_digest, base.template_digest])
    answers = regularizers.find_shipped_answers(base_digest, mixture)
    assert [answer.example_id for answer in answers] == [row.id for row in mixture.rows]
    assert len(regularizers.collect_answered_rows("replay", mixture, lambda: answers)) == 320
    assert regularizers.find_shipped_answers(digest(["another base"]), mixture) == []


def test_of_a_long_answer_the_beginning_is_mixed_in_and_no_end_is_learned_after_it(tiny):
    mixture = regularizers.mixtures({"replay": {"share": 1.0}}, context(n_train=4))["replay"]
    texts = [("ok", "So it is."), ("truncated", "So it is and"), ("ok", "  "), ("error", ""), ("ok", "No.")]
    answers = [
        SampleResult("replay", "test", row.id, i, status, text, "asked", (), {})
        for i, (row, (status, text)) in enumerate(zip(mixture.rows, texts, strict=True))
    ]
    rows = regularizers.collect_answered_rows("replay", mixture, lambda: answers)
    assert [(row.references[0], row.is_cut) for row in rows] == [
        ("So it is.", False), ("So it is and", True), ("No.", False),
    ]  # fmt: skip
    tokenizer, source = AutoTokenizer.from_pretrained(tiny), resolve(str(tiny))
    fitted = SimpleNamespace(chat_template=True, source=source)
    (whole, cut, _), _ = tokenized_rows(fitted, rows, tokenizer, 500, lambda row, start, ids: ids[start:])
    assert set(whole) & set(map_end_tokens(source, tokenizer))
    assert tokenizer.decode(cut) == "So it is and"


def test_penalties_read_the_same_answers_of_the_base_and_nothing_is_mixed_in():
    calls = []

    def answer(name, mixture):
        calls.append((name, mixture))
        fields = ("ok", "So it is.", "asked", (), {})
        return [SampleResult(name, "test", row.id, i, *fields) for i, row in enumerate(mixture.rows)]

    penalties = {"ewc": {"strength": 1.0, "rows": 5}, "kl": {"rows": 5}}
    mixed, rows = regularizers.general_rows(penalties, context(), answer)
    assert mixed == ()
    assert calls[0] == calls[1]
    assert rows["ewc"] == rows["kl"]
    assert [row.references for row in rows["kl"]] == [("So it is.",)] * 5


@pytest.mark.parametrize("adapted", [True, False])
def test_a_new_head_has_no_start_to_be_held_to(tiny, adapted):
    from peft import get_peft_model

    model, _ = load_with_head(resolve(str(tiny)), tiny_methods.CPU, 3)
    if adapted:
        model = get_peft_model(model, lora_config(LoraParams(r=2), "SEQ_CLS"))
    penalty = L2Sp.penalty(Start(model, 0), L2Sp.Params(strength=1.0))
    new = {name: p for name, p in model.named_parameters() if "score" in name and p.requires_grad}
    assert len(new) == 1
    assert not set(new) & set(distance.displacements(model))
    with torch.no_grad():
        for parameter in new.values():
            parameter.add_(1)
    assert sum(term.item() for term in penalty(0)) == 0


def test_every_method_that_makes_gradient_steps_takes_a_regularizer():
    without = [name for name in plugins.methods(trains=True) if not plugins.method(name).hooks]
    assert without == [], (
        "METHOD names in `hooks` those that its loop calls: docs/howto/extend.md#a-regularizer"
    )
