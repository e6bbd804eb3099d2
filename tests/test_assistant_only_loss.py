"""Every turn of the assistant is learnt where the chat template marks it, and nothing runs where it does not."""

from dataclasses import replace

import pytest
import tiny_experiment
import tiny_methods
import tiny_model

from harness import plugins
from harness.errors import UserError
from harness.experiment.preparation.bases import _MARKED
from harness.records import Example
from harness.training.sft import SupervisedParams, _rows

pytestmark = pytest.mark.usefixtures("own_cache")

MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = Example(
    "two",
    (
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ),
    ("four",),
)


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
        two = tuple(
            Example(e.id, (*TURNS.messages[:2], *e.messages), e.references, e.choices) for e in context.train
        )
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
