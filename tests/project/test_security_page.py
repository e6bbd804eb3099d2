"""The security page names an existing test for each threat; code in a model's folder is never run."""

import json
import re

import pytest
import tiny_model
from guards import GUARDS, ROOT, copy_checkout, passes_without
from tiny_methods import CPU

from harness.errors import CandidateFailed, UserError
from harness.models import hub
from harness.models.chat_templates import render_chat
from harness.models.hf import ModelHost

PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "::" in line]
TESTS = sorted(set(re.findall(r"`tests/([\w/]+\.py::\w+)`", PAGE)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_row_names_a_threat_a_guard_and_a_test(row):
    assert len(row) == 3
    assert re.fullmatch(r"(`tests/[\w/]+\.py::\w+`(, )?)+", row[2])


def test_no_row_of_the_page_is_without_a_test():
    tables = [line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith("|---")]
    headings = [line for line in tables if "::" not in line]
    assert headings == ["| threat | guard | test |"] * PAGE.count("|---|---|---|")
    assert len(ROWS) > 30


@pytest.mark.parametrize("name", TESTS)
def test_a_test_that_the_page_names_exists_and_is_known_to_fail_without_its_guard(name):
    file, _, function = name.partition("::")
    assert f"\ndef {function}(" in (ROOT / "tests" / file).read_text("utf-8")
    assert name in {guard.test.partition("[")[0] for guard in GUARDS}


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.file} {guard.text[:30]}")
def test_a_guard_stands_where_it_is_taken_out(guard):
    assert (ROOT / guard.file).read_text("utf-8").count(guard.text) == 1
    assert guard.test.partition("[")[0] in TESTS


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.mark.weekly
@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.test)
def test_without_its_guard_a_test_fails(guard, checkout):
    assert passes_without(guard, checkout) == ""


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_in_a_models_folder_is_never_run(tmp_path, part):
    # The folder's own code leaves a mark if it is run.
    folder = tiny_model.build(tmp_path / "model")
    names = {"model": ("config.json", {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})}
    names["tokenizer"] = ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", None]})
    file, auto_map = names[part]
    config = json.loads((folder / file).read_text()) | {"auto_map": auto_map}
    config |= {"model_type": "own"} if part == "model" else {"tokenizer_class": "Own"}
    (folder / file).write_text(json.dumps(config))
    mark = folder.parent / "mark"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit\n")
    with pytest.raises((CandidateFailed, UserError)):
        ModelHost(hub.resolve(str(tmp_path / "model")), CPU)
    assert not mark.exists()


@pytest.mark.parametrize("reached", ["''.__class__.__mro__", "messages.append(1)"])
def test_a_chat_template_reaches_nothing_of_python(reached):
    template = f"{{% set x = {reached} %}}{tiny_model.CHATML}"
    with pytest.raises(CandidateFailed, match="does not write"):
        render_chat(tiny_model.tokenizer(template), [{"role": "user", "content": "a"}])
