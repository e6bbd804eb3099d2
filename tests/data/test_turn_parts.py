"""Keys of a turn: used, named as unused, or refused; thumbs: read, trained on as in the paper, or refused."""

import math

import pytest
import tiny_experiment
import tiny_methods
from checked_rows import write
from conftest import refused
from tiny_methods import CPU

from harness.data import load_task
from harness.data.formats import every_turn
from harness.data.text_files import Row, Rows
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.methods import kto
from harness.models.devices import load_base
from harness.models.hub import resolve
from harness.records import Example
from harness.spec import Task
from harness.training import LoraParams, lora_config
from harness.training.policies import load_policy

pytestmark = pytest.mark.usefixtures("own_cache")

CALL = '{"name": "track", "arguments": {"order": 7}}'
FLAT = {"name": "track", "arguments": {"order": 7}}
NESTED = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": '{"order": 7}'}}
USE = {"type": "tool_use", "id": "t1", "name": "track", "input": {"order": 7}}


@pytest.fixture
def load(tmp_path):
    def load_rows(*rows, **data):
        path = write(tmp_path / "rows.jsonl", rows)
        return load_task(Task.model_validate({"name": "t", "data": {"test": path, **data}}), 0)

    return load_rows


def talk(*turns):
    return {"messages": [{"role": "user", "content": "Where is order 7?"}, *turns]}


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "Let me look.", "tool_calls": [NESTED]},
        {"content": "Let me look.", "tool_calls": [{**FLAT, "function": None, "parameters": None}]},
        {"content": "Let me look.", "function_call": CALL},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Let me look."}, USE]},
        {"parts": [{"text": "Let me look."}, {"functionCall": {"name": "track", "args": {"order": 7}}}]},
    ],
)
@pytest.mark.parametrize("place", ["last", "middle", "own layout"])
def test_a_call_of_a_tool_is_read_in_every_form_and_at_every_place(load, turn, place):
    called = {"role": "assistant", **turn}
    result = {"role": "tool", "tool_call_id": "c1", "content": "at sea"}
    expected = f"Let me look.\n{CALL}"
    if place == "last":
        assert load(talk(called)).test[0].references == (expected,)
        return
    end = {"role": "assistant", "content": "It is at sea."}
    row = talk(called, result, end) if place == "middle" else {**talk(called, result), "reference": "x"}
    messages = load(row).test[0].messages
    assert [m["content"] for m in messages] == ["Where is order 7?", expected, "at sea"]


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        *(
            ({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": body}]}, "at sea")
            for body in ("at sea", [{"type": "text", "text": "at sea"}])
        ),
        ({"role": "tool", "content": {"place": "sea"}}, '{"place": "sea"}'),
        ({"role": "function", "parts": [{"functionResponse": {"name": "t", "response": {"place": "sea"}}}]}, '{"place": "sea"}'),
    ],
)  # fmt: skip
def test_what_a_tool_returned_is_shown(load, turn, text):
    row = talk({"role": "assistant", "tool_calls": [FLAT]}, turn, {"role": "assistant", "content": "At sea."})
    assert load(row).test[0].messages[-1] == {"role": "user", "content": text}


@pytest.mark.parametrize("key", ["reasoning_content"])
def test_thoughts_and_names_are_named_as_not_used_with_their_turns(load, tmp_path, key):
    answer = {"role": "assistant", "content": "At sea.", key: "Ships sail."}
    row = {"messages": [{"role": "user", "name": "Ann", "content": "Where?", "tool_call_id": "1"}, answer]}
    (note,) = (line for line in load(row, row).read_as if "keys of turns" in line)
    keys = f"keys of turns that are not used: 'name' (2 turns), {key!r} (2 turns); thoughts are neither shown"
    assert note.partition(": ")[2].startswith(keys)
    findings = examine_rows(RowCheck([str(tmp_path / "rows.jsonl")])).findings
    assert [f.severity for f in findings if "keys of turns" in f.title] == ["warning"]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"training": "false"}])
def test_a_turn_that_is_not_to_be_trained_on_is_only_read(load, flag):
    first, last = ({"role": "assistant", "content": text} for text in ("No.", "Yes."))
    row = talk({**first, **flag}, {"role": "user", "content": "Sure?"}, last)
    (turn_row,) = every_turn(Rows("rows.jsonl", "rows", [Row("rows.jsonl:1", row)])).rows
    assert turn_row.fields["id"] == "rows-0-3"
    assert [m["content"] for m in load(row).test[0].messages][1] == "No."
    with pytest.raises(UserError, match="a last answer that is not to be trained on"):
        load(talk({**first, **flag}))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]},
        {"conversations": [{"from": "Human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
        {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "Me."}]},
        {"prompt": "Who?", "chosen": "Me.", "rejected": "No."}, {"instruction": "Who?", "output": "Me."},
        {"messages": [{"role": "user", "content": "Who?"}], "reference": "Me."},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "system", [{"system": "Be brief."}, {"system_prompt": [{"type": "text", "text": "Be brief."}]}]
)
def test_a_system_prompt_in_a_column_stands_in_front_in_every_layout(load, row, system):
    item = load({**row, **system}).test[0]
    assert [m["content"] for m in item.messages] == ["Be brief.", "Who?"]


def test_the_history_of_an_instruction_is_asked_before_it(load):
    row = {"instruction": "And now?", "output": "At home.", "history": [["Where?", "At sea."]]}
    assert [m["content"] for m in load(row).test[0].messages] == ["Where?", "At sea.", "And now?"]


BETA = 0.3


def thumbs(words):
    """Make answers with thumbs: the right label up, and the wrong one of every second letter down."""
    examples = []
    for i, pair in enumerate(tiny_methods.pairs(words)):
        up = Example(f"{pair.id}-up", pair.messages, pair.references, cluster=f"{pair.id}-up")
        down = Example(f"{pair.id}-down", pair.messages, cluster=f"{pair.id}-down", rejected=pair.rejected)
        examples += [up] if i % 2 else [up, down]
    return tuple(examples)


def test_thumbs_are_read_as_trl_writes_them_beside_pairs(load, tmp_path):
    question, answered = {"role": "user", "content": "When?"}, {"role": "assistant", "content": "noon"}
    rows = [
        {"prompt": "Where is it?", "completion": "late", "label": True},
        {"prompt": "Where was it?", "completion": "money", "label": 0},
        {"prompt": [question], "completion": [answered], "label": True},
        {"prompt": "Who?", "chosen": "me", "rejected": "you"},
    ]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    up, down, chat, pair = load({"prompt": "test", "reference": "a"}, pairs=pairs).pairs
    assert (up.prompt, up.references, up.rejected) == ("Where is it?", ("late",), "")
    assert (down.prompt, down.references, down.rejected) == ("Where was it?", (), "money")
    assert (chat.prompt, chat.references) == ("When?", ("noon",))
    assert (pair.references, pair.rejected) == (("me",), "you")


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
    rows, _ = kto._rows(context.pairs, loaded, params)
    rows = rows[:3] + rows[-3:]
    trainer = kto._trainer(loaded, params, (rows, []))
    tiny_methods.move_adapter(trainer.model)
    batch = [trainer.train_dataset[i] for i in range(6)]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(batch)).item()

    plain, _ = load_base(resolve(str(tiny)), CPU)
    policy = trainer.model

    def ratio(row, answer):
        return log_sum(policy, row["prompt_ids"], answer) - log_sum(plain, row["prompt_ids"], answer)

    z = max(0.0, sum(ratio(row, row["KL_completion_ids"]) for row in batch) / 6)
    sides = [(ratio(row, row["completion_ids"]) - z) * (1 if row["label"] else -1) for row in batch]
    expected = sum(1 - 1 / (1 + math.exp(-BETA * side)) for side in sides) / 6
    assert [row["label"] for row in batch] == [True] * 3 + [False] * 3
    assert abs(expected - 0.5) > 1e-3
    assert loss == pytest.approx(expected, rel=1e-3)


@pytest.mark.e2e
def test_training_parts_answers_with_thumbs_up_from_those_with_thumbs_down(tiny, tmp_path):
    context = tiny_methods.context(tiny, tmp_path, pairs=thumbs(slice(0, 3)))
    params = kto.Params(r=4, learning_rate=0.02, num_train_epochs=6, warmup_steps=0)
    figures = kto.METHOD.fit(context, params).training
    assert figures.reward_margin[-1][1] > figures.reward_margin[0][1] + 0.05
    assert (figures.n_pairs, figures.n_heldout) == (22, 5)
    assert len(figures.validation_loss) == 6
    assert figures.kl


def test_thumbs_are_refused_where_pairs_are_needed_and_where_all_point_one_way(tiny, tmp_path):
    rows = [{"prompt": f"Letter {i}?", "completion": "late", "label": True} for i in range(4)]
    candidates = "  dpo: {method: dpo}\n  kto: {method: kto, params: {r: 2, max_steps: 2, max_length: 200}}\n"
    message = str(refused(tiny_experiment.run, tiny_experiment.write(tmp_path, tiny, candidates, pairs=rows)))
    assert "dpo, and 4 of 4 rows in pairs: with a thumb" in message
    assert "method: kto" in message
    assert "kto, and thumbs that all point one way" in message
