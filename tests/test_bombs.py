"""Small files that stand for gigabytes or for endless work end in one message that names the bound."""

import pytest
from conftest import EXPERIMENT

from harness import config

LEVELS = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10))
LAUGHS = f"l0: &l0 [lol, lol, lol]\n{LEVELS}\n"
KEYS = "".join(f"l{i}: &l{i} {{? [{', '.join([f'*l{i - 1}'] * 10)}] : 1}}\n" for i in range(1, 10))
YAML_BOMBS = {
    "lists": LAUGHS,
    "mappings": LAUGHS.replace("[*", "{a: *").replace(", *", ", a*: *").replace("]\nl", "}\nl"),
    "keys": f"l0: &l0 {{a: 1}}\n{KEYS}",
    "a long text": f"t: &t {'x' * 100_000}\nall: [{', '.join(['*t'] * 2000)}]\n",
    "itself": "gate: &a [*a]\n",
    "itself as a key": "gate: &a {*a : 1}\n",
    "merged into itself": "gate: &a {<<: *a}\n",
}
UNREADABLE = ["9" * 5000, f"0x{'f' * 5000}", "2020-99-99", "0000-00-00", "!!int x", "!!bool x", "!!float x"]
RUBRIC = "judge: {model: m}\nprompt: x\n"


@pytest.mark.parametrize("bomb", YAML_BOMBS)
@pytest.mark.parametrize("file", ["harness.yaml", "suites/other.yaml", "baselines/mine.yaml", "judge.yaml"])
def test_yaml_whose_aliases_stand_for_billions_is_refused(folder, command, bomb, file):
    (folder / "harness.yaml").write_text(f"{EXPERIMENT}  mine: mine\n")
    if file == "judge.yaml":
        with (folder / "suites" / "tiny.yaml").open("a") as suite:
            suite.write("    metrics: ['judge:../judge.yaml']\n")
    (folder / "baselines").mkdir()
    (folder / "baselines" / "mine.yaml").write_text("method: base\n")
    written = (folder / file).read_text() if (folder / file).exists() else RUBRIC
    (folder / file).write_text(f"{written}{YAML_BOMBS[bomb]}")
    code, _, said = command("compare", "--dry-run", "-c", folder / "harness.yaml")
    assert code == 2
    assert f"{file}:" in said
    assert "100,000 values" in said or "valid YAML" in said


@pytest.mark.parametrize("value", UNREADABLE)
def test_a_value_that_yaml_cannot_hold_is_refused_in_a_file_and_on_the_command_line(folder, command, value):
    (folder / "harness.yaml").write_text(f"{EXPERIMENT}gate: {{macro: {value}}}\n")
    code, _, said = command("compare", "--dry-run", "-c", folder / "harness.yaml")
    assert (code, "harness.yaml" in said) == (2, True)
    (folder / "harness.yaml").write_text(EXPERIMENT)
    code, _, said = command("compare", "--dry-run", "-c", folder / "harness.yaml", f"gate.macro={value}")
    assert (code, "gate.macro" in said) == (2, True)


def test_aliases_that_a_person_writes_are_read(folder):
    text = f"{EXPERIMENT}  few: {{method: base, prompting: {{few_shot: &s {{shots: 4}}}}}}\n"
    text += "  more: {method: base, prompting: {few_shot: *s}}\n"
    (folder / "harness.yaml").write_text(text)
    candidates = config.load(folder / "harness.yaml").experiment.candidates
    assert candidates["few"] == candidates["more"]
