"""`harness init` names columns that it does not read and bounds the time of its proposal."""

import json
import re

import pytest
from checked_rows import write
from proposals import propose
from ruamel.yaml import YAML

from harness import config
from harness.data import load_task
from harness.experiment import scaffold
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.experiment.scaffold import Request, Resources
from harness.experiment.scaffold.method_choice import choose_method
from harness.experiment.scaffold.proposal_files import STEPS
from harness.models.hardware import Machine, Memory
from harness.models.hub import ModelSource
from harness.spec import TaskData

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_cache")]
WORDS = "the lamp is on the table and the hen is in the garden"


def test_an_answer_goes_before_a_category_which_is_named(tmp_path):
    raw_rows = [
        {"prompt": f"Say {i}.", "category": "ab"[i % 2], "response": f"{i} {WORDS}"} for i in range(40)
    ]
    proposal = propose(tmp_path, raw_rows)
    assert proposal.task.fields.reference == "{response}"
    assert any(line.endswith("--reference category") for line in proposal.warnings)
    assert propose(tmp_path, raw_rows, reference="category").warnings == ()


def test_which_column_was_taken_where_two_could_be_is_said_by_init_and_by_the_check(tmp_path):
    title = "the answer is taken from 'answer', and 'output' may hold it as well"
    raw_rows = [{name: f"{name} {i}" for name in ("question", "answer", "output")} for i in range(40)]
    (line,) = propose(tmp_path, raw_rows).warnings
    assert line == f"{title}; next: where it does, --reference output"
    report = examine_rows(RowCheck([str(tmp_path / "mine.jsonl")], only=["missing_values"]))
    (command,) = [finding.command for finding in report.findings if finding.title == title]
    assert command.endswith("--reference output")


def test_columns_that_name_what_is_not_read_are_warned_of(tmp_path):
    names = ("card", "pin", "refund")
    raw_rows = [{"text": f"Say {i}.", "label": i % 3, "label_text": names[i % 3]} for i in range(60)]
    (warning,) = propose(tmp_path, raw_rows).warnings
    assert "the labels are numbers" in warning
    assert propose(tmp_path, raw_rows, reference="label_text").warnings == ()

    parts = ["train", "train", "train", "test"]
    raw_rows = [{"text": f"Say {i}.", "label": "ab"[i % 2], "split": parts[i // 2 % 4]} for i in range(80)]
    (warning,) = propose(tmp_path, raw_rows).warnings
    assert warning.startswith("the column 'split' parts the rows into train (60), test (20), and is not read")


def test_parts_of_a_folder_beside_train_are_said_not_to_be_read(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part, n in (("train", 60), ("validation", 10), ("test", 10)):
        raw_rows = [{"text": f"Say {part} {i}.", "label": "ab"[i % 2]} for i in range(n)]
        write(folder / f"{part}.jsonl", raw_rows)
    proposal = propose(tmp_path, folder)
    (warning,) = proposal.warnings
    assert "its validation and test rows are not read" in warning
    data = YAML(typ="safe").load(warning.partition("write data: ")[2].removesuffix(" in the suite"))
    task_items = load_task(proposal.task.model_copy(update={"data": TaskData(**data)}), 0)
    assert (len(task_items.train), len(task_items.validation), len(task_items.test)) == (60, 10, 10)


N = 800


def resources(free_gib=64.0, device="cpu", gflops=1000.0):
    precision = "bf16" if device == "cuda" else "fp32"
    speeds = {precision: [gflops * share for share in (1.0, 0.82, 0.35, 0.38)]} if device == "cpu" else {}
    machine = Machine(device, "a machine", precision, gflops, speeds=speeds)
    return Resources(machine, Memory(free_gib, 80.0, "memory"))


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """Write more labelled rows than are proposed for a slow machine."""
    content = [
        {"text": f"Where is the {('card', 'pin')[i % 2]} of {i}?", "label": "ab"[i % 2]} for i in range(N)
    ]
    return write(tmp_path_factory.mktemp("many") / "many.jsonl", content)


@pytest.fixture
def propose_on(large_file, tiny, tmp_path):
    """Function that proposes an experiment for a machine of a given speed."""
    request = Request(tmp_path / "new", large_file, str(tiny), minutes=20.0)
    return lambda gflops: scaffold.propose(request, resources(gflops=gflops))


def find_time_line(proposal):
    (line,) = [line for line in proposal.lines if line.startswith("time:")]
    return line


def test_a_quick_machine_is_asked_all_and_a_base_that_is_not_here_is_not_fetched(
    propose_on, large_file, tmp_path
):
    proposal = propose_on(gflops=1000.0)
    assert proposal.task.data.limits.train is None
    assert "bounded" not in find_time_line(proposal)
    assert "sweep" in proposal.candidates["full"]

    proposal = propose(tmp_path, large_file, minutes=20.0)
    assert "the base is not here yet" in find_time_line(proposal)
    assert "lora" in proposal.candidates


def test_a_slow_machine_gets_fewer_rows_and_no_sweep_and_is_told_what_these_cannot_bring_below_the_bound(
    propose_on,
):
    proposal = propose_on(gflops=0.001)
    assert proposal.task.data.limits.train == STEPS[-1].train
    line = find_time_line(proposal)
    assert "as short as these rows allow by" in line
    assert f"{STEPS[-1].train} of 512 rows to train on" in line
    assert "next: a smaller --base-model" in proposal.warnings[0]
    path = scaffold.write(proposal)[0]
    assert f"# {line}" in path.read_text()
    assert config.load(path).experiment.target.data.limits == proposal.task.data.limits
    full_recipe = proposal.candidates["full"]
    assert "sweep" not in full_recipe
    assert full_recipe["params"]["learning_rate"] == 1e-4


RECIPES = {name: {"params": {}} for name in ("full", "lora", "qlora")}


@pytest.fixture
def llama(tmp_path):
    """Function that makes a Llama-shaped base with the given billions of parameters."""

    def make_source(billions):
        hidden = 4096 if billions >= 7 else 2048
        shape = {"num_hidden_layers": 32 if billions >= 7 else 16, "hidden_size": hidden}
        shape |= {"intermediate_size": 4 * hidden, "num_attention_heads": 32}
        shape |= {"num_key_value_heads": 8, "vocab_size": 32000}
        (tmp_path / "config.json").write_text(json.dumps(shape))
        return ModelSource("llama", tmp_path, "a", "b", int(billions * 1e9))

    return make_source


@pytest.mark.parametrize(
    ("billions", "free_gib", "device", "chosen", "said", "others"),
    [
        (8.0, 80, "cuda", "lora", "merged, it answers as fast as the base; all parameters would take", ["ia3", "spectrum"]),
        (8.0, 24, "cuda", "lora", "merged, it answers as fast as the base; all parameters would take", ["ia3"]),
        (8.0, 16, "cuda", "qlora", "on the base in 4 bits, because lora would take", []),
        (1.0, 16, "cpu", "lora", "million of 1,000 million parameters", ["ia3", "spectrum"]),
        (0.03, 16, "cpu", "full", "all 30 million parameters", ["ia3", "spectrum"]),
    ],
)  # fmt: skip
def test_the_method_and_others_that_fit_follow_from_memory_and_size(
    llama, billions, free_gib, device, chosen, said, others
):
    choice = choose_method(RECIPES, llama(billions), resources(free_gib, device), longest=200)
    assert (choice.name, choice.warning) == (chosen, "")
    assert said in choice.why
    assert re.findall(r"(\w+) \(trains [^()]+, in about [\d.]+ GB\)", choice.others) == others
