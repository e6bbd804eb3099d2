"""Answers with a thumb: read from rows, trained on as the paper says, and refused where pairs are needed."""

import math
import re

import pytest
import tiny_experiment
import tiny_methods
from tiny_methods import CPU

from harness.data import load_task
from harness.errors import UserError
from harness.methods import kto
from harness.models.devices import load_base
from harness.models.hub import resolve
from harness.records import Example
from harness.spec import Task, TaskData
from harness.training import LoraParams, lora_config, unpaired
from harness.training.low_rank_adapters import load_policy

pytestmark = pytest.mark.usefixtures("own_cache")

BETA = 0.3


def thumbs(words):
    """Make answers with thumbs: the right label up, and the wrong one of every second letter down."""
    made = []
    for i, pair in enumerate(tiny_methods.pairs(words)):
        up = Example(f"{pair.id}-up", pair.messages, pair.references, cluster=f"{pair.id}-up")
        down = Example(f"{pair.id}-down", pair.messages, cluster=f"{pair.id}-down", rejected=pair.rejected)
        made += [up] if i % 2 else [up, down]
    return tuple(made)


def rows_of(tmp_path, rows):
    tiny_experiment.rows(tmp_path / "test.jsonl", [{"prompt": "test", "reference": "a"}])
    tiny_experiment.rows(tmp_path / "train.jsonl", [{"prompt": f"{i}", "reference": "a"} for i in range(5)])
    tiny_experiment.rows(tmp_path / "pairs.jsonl", rows)
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test", "pairs")}
    return load_task(Task(name="t", data=TaskData(**data)), 0).pairs


def test_thumbs_are_read_as_trl_writes_them_beside_pairs(tmp_path):
    up, down, chat, pair = rows_of(
        tmp_path,
        [
            {"prompt": "Where is it?", "completion": "late", "label": True},
            {"prompt": "Where was it?", "completion": "money", "label": 0},
            {
                "prompt": [{"role": "user", "content": "When?"}],
                "completion": [{"role": "assistant", "content": "noon"}],
                "label": True,
            },
            {"prompt": "Who?", "chosen": "me", "rejected": "you"},
        ],
    )
    assert (up.prompt, up.references, up.rejected) == ("Where is it?", ("late",), "")
    assert (down.prompt, down.references, down.rejected) == ("Where was it?", (), "money")
    assert (chat.prompt, chat.references) == ("When?", ("noon",))
    assert (pair.references, pair.rejected) == (("me",), "you")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completion": "b", "label": "up"}, "the label 'up'"),
        ({"prompt": "a", "completion": " ", "label": True}, "an empty 'completion'"),
        ({"prompt": "a", "completion": [{"role": "user", "content": "b"}], "label": True}, "another form"),
    ],
)
def test_a_row_whose_thumb_cannot_be_read_is_refused(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        rows_of(tmp_path, [row])


def log_sum(model, prompt, answer):
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
    return sum(logits[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))


def test_the_loss_is_that_of_the_paper(tiny, tmp_path):
    """1 − σ(β (r − z)) of a thumb up and 1 − σ(β (z − r)) of one down, z the divergence, at least 0."""

    context = tiny_methods.context(tiny, tmp_path, pairs=thumbs(slice(0, 2)))
    params = kto.Params(beta=BETA, per_device_train_batch_size=6, heldout=0)
    loaded = load_policy(context, lora_config(LoraParams(r=2)), tmp_path / "adapter")
    rows, _ = unpaired._rows(context.pairs, context, params, loaded.tokenizer)
    rows = rows[:3] + rows[-3:]
    trainer = unpaired._trainer(loaded, params, (rows, []))
    tiny_methods.move_adapter(trainer.model)
    made = [trainer.train_dataset[i] for i in range(6)]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(made)).item()

    plain, _ = load_base(resolve(str(tiny)), CPU)
    policy = trainer.model

    def ratio(row, answer):
        return log_sum(policy, row["prompt_ids"], answer) - log_sum(plain, row["prompt_ids"], answer)

    z = max(0.0, sum(ratio(row, row["KL_completion_ids"]) for row in made) / 6)
    sides = [(ratio(row, row["completion_ids"]) - z) * (1 if row["label"] else -1) for row in made]
    expected = sum(1 - 1 / (1 + math.exp(-BETA * side)) for side in sides) / 6
    assert [row["label"] for row in made] == [True] * 3 + [False] * 3
    assert abs(expected - 0.5) > 1e-3
    assert loss == pytest.approx(expected, rel=1e-3)


@pytest.mark.e2e
def test_training_parts_answers_with_thumbs_up_from_those_with_thumbs_down(tiny, tmp_path):
    context = tiny_methods.context(tiny, tmp_path, pairs=thumbs(slice(0, 3)))
    params = kto.Params(r=4, learning_rate=0.02, num_train_epochs=6, warmup_steps=0)
    figures = kto.fit(context, params).training
    assert figures.reward_margin[-1][1] > figures.reward_margin[0][1] + 0.05
    assert (figures.n_pairs, figures.n_heldout) == (22, 5)
    assert len(figures.validation_loss) == 6
    assert figures.kl


CANDIDATES = """\
  kto: {method: kto, params: {r: 2, max_steps: 2, max_length: 200}}
"""


def list_refusals(tiny, tmp_path, rows, candidates):
    path = tiny_experiment.write(tmp_path, tiny, candidates, pairs=rows)
    with pytest.raises(UserError) as error:
        tiny_experiment.run(path)
    return str(error.value)


def test_thumbs_are_refused_where_pairs_are_needed_and_where_all_point_one_way(tiny, tmp_path):
    rows = [{"prompt": f"Letter {i}?", "completion": "late", "label": True} for i in range(4)]
    said = list_refusals(tiny, tmp_path, rows, "  dpo: {method: dpo}\n" + CANDIDATES)
    assert "dpo, and 4 of 4 rows in pairs: with a thumb" in said
    assert "method: kto" in said
    assert "kto, and thumbs that all point one way" in said


@pytest.mark.parametrize(
    ("n_up", "n_down", "weights", "said"),
    [
        (17, 1, {}, "17 thumbs up and 1 down weigh 17 to 1 .*with undesirable_weight: 17$"),
        (2, 8, {"undesirable_weight": 2}, "weigh 2 to 16 .*with desirable_weight: 8$"),
        (17, 1, {"undesirable_weight": 17}, None),
        (4, 3, {}, None),
        (5, 5, {}, None),
    ],
)
def test_thumbs_of_unlike_numbers_are_remarked_with_the_weight_that_balances_them(
    n_up, n_down, weights, said
):
    up = [Example(f"u{i}", (), ("late",)) for i in range(n_up)]
    down = [Example(f"d{i}", (), (), rejected="money") for i in range(n_down)]
    remarks = list(kto.METHOD.checks.remarks(kto.Params(**weights), [*up, *down]))
    assert len(remarks) == (said is not None)
    assert all(re.search(said, remark) for remark in remarks)
