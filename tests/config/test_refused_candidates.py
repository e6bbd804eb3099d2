"""Candidates and trainings that cannot be made are refused before anything runs, with a next step."""

from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods
from conftest import refused

from harness import config
from harness.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")

BESIDE = ["prompt: {method: base}", "lora: {method: lora}", "bag: {method: classifier}"]


def read_cases():
    """Yield each case: its other candidates, the candidate, and the words of its refusal in order."""
    other_lines: list[str] = []
    for line in Path(__file__).parents[1].joinpath("refused_candidates.txt").read_text("utf-8").splitlines():
        if line.startswith("## "):
            other_lines = []
        elif line.startswith("+ "):
            other_lines.append(line.removeprefix("+ "))
        elif " => " in line:
            candidate, _, words = line.partition(" => ")
            yield pytest.param(tuple(other_lines), candidate, words.split(" ‥ "), id=f"{candidate} {words}")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    tiny_experiment.write(folder, tiny, pairs=tiny_methods.pair_rows(slice(0, 1)))
    for name, content in (
        ("cut.gguf", b"GGUF\3\0\0\0"),
        ("cut.onnx", b"\x08\x0a\x3a\x09"),
        ("no.onnx", b"\x08\x0a"),
    ):
        (folder / name).write_bytes(content)
    for i, name in enumerate(("curated", "more")):
        tiny_experiment.rows(folder / f"{name}.jsonl", tiny_experiment.letters(slice(0, 5))[i::2])
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize(("others", "candidate", "said"), list(read_cases()))
def test_an_impossible_candidate_is_refused_before_anything_runs(folder, tiny, others, candidate, said):
    path = folder / "harness.yaml"
    beginning = path.read_text().partition("candidates:\n")[0]
    overrides = [candidate.removeprefix("$ ")] if candidate.startswith("$ ") else []
    own_line = [] if overrides else [f"own: {candidate}"]
    written = "".join(f"  {line}\n" for line in (*BESIDE, *others, *own_line))
    path.write_text(f"{beginning}candidates:\n{written}")
    rest = str(refused(tiny_experiment.run, path, *overrides))
    assert overrides or "harness.yaml:" in rest
    for phrase in said:
        assert phrase in rest
        rest = rest.partition(phrase)[2]
    assert not list((folder / "runs").glob("*/*"))


def prepare(tiny, folder, candidates):
    path = tiny_experiment.write(folder, tiny, f"  prompt: {{method: base}}\n{candidates}")
    return tiny_experiment.session(path)


def refusal(tiny, folder, candidates):
    return str(refused(prepare, tiny, folder, candidates))


def test_references_that_the_metric_cannot_read_are_refused_with_one_of_them(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    target = tmp_path / "suites" / "letters.yaml"
    target.write_text(target.read_text().replace("[exact_match,", "[json_fields,"))
    error = str(refused(tiny_experiment.session, path))
    assert "task letters: metric json_fields: found references that it cannot read, of all 18 items" in error
    assert "the first is “late”" in error


def write_experiment(tmp_path, tiny, recipe):
    return tiny_experiment.write(tmp_path, tiny, f"  prompt: {{method: base}}\n  own: {recipe}\n")


def test_a_sweep_or_grid_of_more_than_64_is_refused_and_of_64_not(tiny, tmp_path):
    path = write_experiment(tmp_path, tiny, f"{{method: lora, params: {{r: {list(range(1, 65))}}}}}")
    with pytest.raises(UserError, match="found 65 candidates; expected at most 64"):
        tiny_experiment.run(path)
    assert not (tmp_path / "runs").exists()

    sweep = f"{{r: {list(range(1, 14))}, num_train_epochs: [1, 2, 3, 4, 5]}}"
    with pytest.raises(UserError, match="a sweep of 65 trials; expected at most 64"):
        config.load(write_experiment(tmp_path, tiny, f"{{method: lora, sweep: {sweep}}}"))

    sweep = f"{{r: {list(range(1, 17))}, num_train_epochs: [1, 2, 3, 4]}}"
    loaded = config.load(write_experiment(tmp_path, tiny, f"{{method: lora, sweep: {sweep}}}"))
    assert "own" in loaded.selected
