"""Chat templates of bases without one: by name or file, in training and evaluation alike, part of every identity."""

import json

import pytest
import tiny_experiment
import tiny_model

from harness.errors import UserError
from harness.models.chat_templates import template_names
from harness.models.hub import load_tokenizer, resolve
from harness.models.tokenization import encode_all
from harness.records import PromptText

pytestmark = pytest.mark.usefixtures("own_cache")

ASKED = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Which day is it?"})
CHATML = """\
<|im_start|>system
Be short.<|im_end|>
<|im_start|>user
Which day is it?<|im_end|>
<|im_start|>assistant
"""
LORA = "  lora: {method: lora, params: {r: 2, max_steps: 1, max_length: 200}}\n  prompt: {method: base}\n"
OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token if m['role'] == 'assistant' else '' }}{% endfor %}"
OWN += "{% if add_generation_prompt %}[assistant] {% endif %}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base whose tokenizer has no chat template, with a beginning-of-sequence token and none for turns."""
    folder = tiny_model.build(tmp_path_factory.mktemp("completion-only"), template=None, adds_bos=True)
    plain = json.loads((folder / "tokenizer_config.json").read_text())
    assert plain.get("chat_template") is None
    assert not list(folder.glob("chat_template*"))
    return folder


def session_of(folder, base, *overrides, candidates=LORA):
    path = tiny_experiment.write(folder, base, candidates)
    return tiny_experiment.session(path, *overrides)


def refusal(folder, base, *overrides):
    with pytest.raises(UserError) as error:
        session_of(folder, base, *overrides)
    return str(error.value)


def test_chat_without_a_template_is_refused_with_what_to_write_and_a_needless_one_too(tmp_path, base, tiny):
    said = refusal(tmp_path, base)
    assert "a tokenizer without a chat template, and tasks prompted in chat: letters, facts" in said
    assert "next: chat_template: alpaca or chatml in harness.yaml" in said
    assert "every base has a template of its own" in refusal(tmp_path, tiny, "chat_template=chatml")
    assert template_names() == ["alpaca", "chatml"]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("chatml", f"<s>{CHATML}"),
        ("alpaca", "<s>Be short.\n\n### Instruction:\nWhich day is it?\n\n### Response:\n"),
    ],
)
def test_a_named_template_begins_as_the_tokenizer_does_and_ends_turns_by_what_it_knows(
    tmp_path, base, name, written
):
    tokenizer = load_tokenizer(session_of(tmp_path, base, f"chat_template={name}").source)
    assert tokenizer.decode(encode_all(tokenizer, [PromptText(ASKED)])[0].context) == written
    whole = tokenizer.apply_chat_template(
        [*ASKED, {"role": "assistant", "content": "Monday."}], tokenize=False
    )
    assert whole.startswith(f"{written}Monday.{tokenizer.eos_token}")


def test_the_template_is_part_of_what_names_rows_and_weights(tmp_path, base):
    (tmp_path / "own.jinja").write_text(OWN)
    digests = {
        written: session_of(tmp_path, base, f"chat_template={written}").source.template_digest
        for written in ("chatml", "alpaca", "own.jinja")
    }
    assert len(set(digests.values())) == 3
    (tmp_path / "own.jinja").write_text(OWN.replace("[assistant]", "[me]").replace("{{ m['role'] }}", "me"))
    assert (
        session_of(tmp_path, base, "chat_template=own.jinja").source.template_digest != digests["own.jinja"]
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("chatlm", "did you mean 'chatml'"),
        ("absent.jinja", "no file"),
        ("broken.jinja", "a template that cannot be rendered"),
        ("endless.jinja", "'' after an answer; expected a token that ends one: <|im_end|>"),
        ("apart.jinja", "expected a conversation that begins with the prompt, then the answer"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_before_anything_is_trained(tmp_path, base, written, said):
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}{{ m['content'] }}")
    (tmp_path / "endless.jinja").write_text(
        OWN.replace("{{ eos_token if m['role'] == 'assistant' else '' }}", "")
    )
    (tmp_path / "apart.jinja").write_text(OWN.replace("[assistant] ", "Answer: "))
    assert said in refusal(tmp_path, base, f"chat_template={written}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.e2e
def test_a_whole_experiment_trains_and_answers_by_the_template_and_leaves_it_with_the_adapter(tmp_path, base):
    path = tiny_experiment.write(tmp_path, base, LORA, extra="chat_template: alpaca\n")
    report = tiny_experiment.run(path, "suites=[]")
    expected = [("lora", "done", ""), ("prompt", "done", "")]
    assert sorted((f.name, f.state, f.error) for f in report.facts) == expected
    (adapter,) = (tmp_path / "runs" / "weights").glob("*/adapter")
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(adapter)
    ours = load_tokenizer(tiny_experiment.session(path).source)
    written = [
        one.apply_chat_template(list(ASKED), tokenize=False, add_generation_prompt=True)
        for one in (saved, ours)
    ]
    assert written[0] == written[1]
    assert written[0].endswith("### Response:\n")
    runs = tiny_experiment.runs_of(path)
    again = tiny_experiment.run(path, "suites=[]")
    assert {f.run_id for f in again.facts} == {run.run_id for run in runs.values()}


REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}\n" + OWN
DROPPING = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}\n" + OWN


@pytest.mark.parametrize("template", [REFUSING, DROPPING])
def test_a_system_message_that_a_template_does_not_write_stands_before_the_first_question(tmp_path, template):
    refusing, taking = (
        load_tokenizer(resolve(str(tiny_model.build(tmp_path / name, template=template))))
        for name, template in (("refusing", template), ("taking", OWN))
    )
    earlier = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me"}]

    def render(tokenizer, messages):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert render(refusing, [ASKED[0], *earlier, ASKED[1]]) == (
        f"[user] Be short.\n\nWho?[assistant] Me{refusing.eos_token}[user] Which day is it?[assistant] "
    )
    assert render(refusing, earlier[:1]) == render(taking, earlier[:1])
    assert taking.chat_template == OWN
