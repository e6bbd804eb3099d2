"""Training rows become tokens once, those of TRL; whatever they are made of makes them anew."""

import shutil
from dataclasses import replace

import pytest
import tiny_methods
import tiny_model
from tiny_methods import CPU

from harness.cache import cache_dir
from harness.methods import dpo, lora
from harness.models.devices import load_base
from harness.models.hub import resolve
from harness.training.tokenized import tokenize

QUICK = {"r": 2, "learning_rate": 0.01, "warmup_steps": 0, "num_train_epochs": 2}
ROWS = tiny_methods.examples(slice(0, 2))


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


class CountingTokenizer:
    """A tokenizer that counts how often it is asked."""

    def __init__(self, model):
        self.source = resolve(str(model))
        self.inner, self.n = load_base(self.source, CPU)[1], 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *args, **options):
        self.n += 1
        return self.inner(*args, **options)

    def apply_chat_template(self, *args, **options):
        self.n += 1
        return self.inner.apply_chat_template(*args, **options)


def tokens(tokenizer, rows=ROWS, chat=True):
    return tokenize(rows, [row.references[:1] for row in rows], chat, tokenizer, tokenizer.source)


def test_tokens_of_the_same_rows_are_remembered_and_those_of_others_made_anew(tiny, tmp_path):
    first, second = CountingTokenizer(tiny), CountingTokenizer(tiny)
    assert tokens(first) == tokens(second)
    assert (first.n > 0, second.n) == (True, 0)
    tokenizer = CountingTokenizer(tiny)
    before = tokens(tokenizer)
    assert tokens(tokenizer, edit_first_row(ROWS)) != before
    assert tokens(tokenizer) != tokens(tokenizer, chat=False)
    started = tiny_model.build(tmp_path / "started", template=tiny_model.STARTED)
    assert tokens(CountingTokenizer(tiny)) != tokens(CountingTokenizer(started))


def edit_first_row(rows):
    return (replace(rows[0], references=("money",)), *rows[1:])


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_tokens_are_those_that_trl_makes(tmp_path, chat, adds_bos):
    """TRL gets the texts and makes its own tokens and labels of them."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_base(resolve(str(tiny_model.build(tmp_path / "m", adds_bos=adds_bos))), CPU)
    answer = ROWS[0].references[0]
    text = {"prompt": ROWS[0].prompt, "completion": f" {answer}{tokenizer.eos_token}"}
    turns = {"prompt": list(ROWS[0].messages), "completion": [{"role": "assistant", "content": answer}]}
    config = SFTConfig(output_dir=str(tmp_path), completion_only_loss=True, use_cpu=True, bf16=False)
    rows = Dataset.from_list([turns if chat else text])
    trainer = SFTTrainer(model=model, args=config, processing_class=tokenizer, train_dataset=rows)
    (theirs,) = trainer.train_dataset
    own = tokenize(ROWS[:1], [(answer,)], chat, tokenizer, resolve(str(tmp_path / "m")))[0]
    assert own.wholes == [theirs["input_ids"]]
    assert [-100] * own.start + own.wholes[0][own.start :] == theirs["labels"]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("method", "own"), [(lora, {"lora_dropout": 0.2}), (dpo, {"lora_dropout": 0.2})], ids=["lora", "dpo"]
)
def test_training_ends_with_the_same_weights_with_and_without_what_is_remembered(tiny, tmp_path, method, own):
    made = []
    for name in ("without", "with", "without again"):
        if name == "without again":
            shutil.rmtree(cache_dir())
        context = tiny_methods.context(tiny, tmp_path / name)
        made.append(method.fit(context, method.Params(**{**QUICK, **own})))
    assert len({weights.digest for weights in made}) == 1
    assert made[0].training.loss == made[1].training.loss == made[2].training.loss


def list_cached_files():
    return {path.name for path in (cache_dir() / "training").iterdir()}


@pytest.mark.e2e
def test_a_reference_is_read_once_for_all_learning_rates_and_seeds(tiny, tmp_path):
    dpo.fit(tiny_methods.context(tiny, tmp_path / "one"), dpo.Params(**QUICK))
    before = list_cached_files()
    other = replace(tiny_methods.context(tiny, tmp_path / "two"), seed=1)
    dpo.fit(other, dpo.Params(**{**QUICK, "learning_rate": 0.001, "beta": 0.5}))
    assert list_cached_files() == before


@pytest.mark.e2e
def test_another_reference_is_read_anew(tiny, tmp_path):
    started = tmp_path / "started"
    parent = lora.fit(tiny_methods.context(tiny, started), lora.Params(**QUICK)).folder / "adapter"
    dpo.fit(tiny_methods.context(tiny, tmp_path / "base"), dpo.Params(**QUICK))
    before = list_cached_files()
    params = {name: value for name, value in QUICK.items() if name != "r"}
    figures = dpo.fit(
        tiny_methods.context(tiny, tmp_path / "from", init=parent), dpo.Params(**params)
    ).training
    assert len(list_cached_files() - before) == 2  # of the pairs trained on, and of those held out
    assert figures.reward_margin[0][1] == pytest.approx(0, abs=1e-4)


@pytest.mark.e2e
@pytest.mark.parametrize("changed", ["weights", "precision", "rows at a time"])
def test_a_reference_that_is_read_otherwise_is_read_anew(tiny, tmp_path, changed):
    dpo.fit(tiny_methods.context(tiny, tmp_path / "before"), dpo.Params(**QUICK))
    before = list_cached_files()
    model = tiny_model.build(tmp_path / "other", seed=1) if changed == "weights" else tiny
    machine = CPU._replace(precision="bf16") if changed == "precision" else CPU
    own = {"per_device_train_batch_size": 2} if changed == "rows at a time" else {}
    dpo.fit(tiny_methods.context(model, tmp_path / "after", machine=machine), dpo.Params(**QUICK, **own))
    assert len(list_cached_files() - before) == 2  # of the pairs trained on, and of those held out
