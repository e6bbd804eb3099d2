"""`harness init` bounds the time of what it proposes, and chooses the method by memory, size and latency."""

import json
from functools import cache

import pytest

from harness import config
from harness.experiment import scaffold
from harness.experiment.scaffold import Request, Resources
from harness.experiment.scaffold.method_choice import choose_method, fit_batches
from harness.experiment.scaffold.time_bound import STEPS
from harness.models.hardware import Machine, Memory
from harness.models.hub import ModelSource

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_cache")]

N = 3000


def resources(free_gib=64.0, device="cpu", gflops=1000.0):
    precision = "bf16" if device == "cuda" else "fp32"
    speeds = {precision: [gflops * share for share in (1.0, 0.82, 0.35, 0.38)]} if device == "cpu" else {}
    machine = Machine(device, "a machine", precision, gflops, speeds=speeds)
    return Resources(machine, Memory(free_gib, 80.0, "memory"))


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """Write three thousand rows with a label."""
    path = tmp_path_factory.mktemp("many") / "many.jsonl"
    content = [
        {"text": f"Where is the {('card', 'pin')[i % 2]} of {i}?", "label": "ab"[i % 2]} for i in range(N)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture(scope="module")
def propose_on(large_file, tiny, own_cache, tmp_path_factory):
    """Return a function that proposes for a machine of such a speed, once for each speed and bound."""

    @cache
    def propose(gflops, minutes=20.0):
        request = Request(tmp_path_factory.mktemp("new") / "new", str(large_file), str(tiny), minutes=minutes)
        return scaffold.propose(request, resources(gflops=gflops))

    return propose


def find_time_line(found):
    (line,) = [line for line in found.said if line.startswith("time:")]
    return line


def test_a_quick_machine_is_asked_all_that_limits_allow(propose_on):
    found = propose_on(gflops=1000.0)
    assert found.task.data.limits.train is None
    assert "bounded to 20 min by 200 of 480 for validation, 400 of 600 for test" in find_time_line(found)
    assert "sweep" in found.candidates["full"]


def test_a_slow_machine_gets_fewer_rows_and_no_sweep_and_is_told(propose_on):
    found = propose_on(gflops=0.12)
    limits = found.task.data.limits
    assert limits.train < 1920
    line = find_time_line(found)
    assert f"{limits.train:,} of 1,920 rows to train on" in line
    assert "--minutes" in line
    path = scaffold.write(found)[0]
    assert f"# {line}" in path.read_text()
    assert config.load(path).experiment.target.data.limits == limits
    assert found.warnings == ()


def test_folds_of_a_few_rows_that_take_too_long_are_left_out_and_their_time_is_said(tiny, tmp_path):
    path = tmp_path / "few.jsonl"
    content = [{"text": f"Where is {i}?", "label": ("card", "pin")[i % 2]} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))

    def propose(gflops):
        return scaffold.propose(
            Request(tmp_path / "new", str(path), str(tiny), minutes=20.0), resources(gflops=gflops)
        )

    assert propose(1000.0).task.data.folds == 5
    slow = propose(0.02)
    assert slow.task.data.folds is None
    (line,) = [line for line in slow.said if line.startswith("few rows: folds: 5")]
    assert "not set: that takes about" in line


def test_what_no_rows_can_bring_below_the_bound_is_warned_of(propose_on):
    found = propose_on(gflops=0.001)
    assert found.task.data.limits.train == STEPS[-1].train
    assert "as short as these rows allow by" in find_time_line(found)
    assert "next: a smaller --base-model" in found.warnings[0]
    full = found.candidates["full"]
    assert "sweep" not in full
    assert full["params"]["learning_rate"] == 1e-4


def test_a_base_that_is_not_here_is_not_fetched(large_file, tmp_path):
    found = scaffold.propose(
        Request(tmp_path / "new", str(large_file), "own/model", minutes=20.0), resources()
    )
    assert "the base is not here yet" in find_time_line(found)
    assert "lora" in found.candidates


RECIPES = {name: {"params": {}} for name in ("full", "lora", "qlora")}


@pytest.fixture
def llama(tmp_path):
    """Return a maker of bases of so many billion parameters in the shape of a Llama."""

    def make_source(billions):
        hidden = 4096 if billions >= 7 else 2048
        (tmp_path / "config.json").write_text(
            json.dumps(
                {
                    "num_hidden_layers": 32 if billions >= 7 else 16,
                    "hidden_size": hidden,
                    "intermediate_size": 4 * hidden,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 8,
                    "vocab_size": 32000,
                }
            )
        )
        return ModelSource("llama", tmp_path, "a", "b", int(billions * 1e9))

    return make_source


@pytest.mark.parametrize(
    ("billions", "free_gib", "device", "chosen", "said"),
    [
        (8.0, 80, "cuda", "lora", "merged, it answers as fast as the base; all parameters would take"),
        (8.0, 16, "cuda", "qlora", "on the base in 4 bits, because lora would take"),
        (1.0, 16, "cpu", "lora", "million of 1,000 million parameters"),
        (0.03, 16, "cpu", "full", "all 30 million parameters"),
    ],
)
def test_the_method_follows_from_memory_and_size(llama, billions, free_gib, device, chosen, said):
    choice = choose_method(RECIPES, llama(billions), resources(free_gib, device), longest=200)
    assert (choice.name, choice.warning) == (chosen, "")
    assert said in choice.why


def test_a_training_takes_fewer_rows_at_a_time_where_memory_asks_for_it(llama):
    def fit_into(free_gib):
        return fit_batches(RECIPES, llama(1.0), resources(free_gib), longest=4096)

    assert fit_into(64) == RECIPES
    batches = [fit_into(free_gib)["lora"]["params"] for free_gib in (32, 16, 8)]
    rows = [params.get("per_device_train_batch_size", 8) for params in batches]
    steps = [params.get("gradient_accumulation_steps", 1) for params in batches]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 8
    assert [n * k for n, k in zip(rows, steps, strict=True)] == [8, 8, 8]
