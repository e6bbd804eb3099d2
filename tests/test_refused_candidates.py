"""Candidates that cannot be made are refused before anything runs, each in the words of refused_candidates.txt."""

from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods

from harness.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")
BESIDE = ["prompt: {method: base}", "lora: {method: lora}", "bag: {method: classifier}"]


def read_cases():
    """Yield the other candidates of each case, the candidate and the words of its refusal, in their order."""
    others: list[str] = []
    for line in Path(__file__).with_name("refused_candidates.txt").read_text("utf-8").splitlines():
        if line.startswith("## "):
            others = []
        elif line.startswith("+ "):
            others.append(line.removeprefix("+ "))
        elif " => " in line:
            candidate, _, said = line.partition(" => ")
            yield pytest.param(tuple(others), candidate, said.split(" ‥ "), id=f"{candidate} {said}")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    tiny_experiment.write(folder, tiny, pairs=tiny_methods.pair_rows(slice(0, 1)))
    for i, name in enumerate(("curated", "more")):
        tiny_experiment.rows(folder / f"{name}.jsonl", tiny_experiment.letters(slice(0, 5))[i::2])
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize(("others", "candidate", "said"), list(read_cases()))
def test_a_candidate_that_cannot_be_made_is_refused_before_anything_runs(
    folder, tiny, others, candidate, said
):
    path = folder / "harness.yaml"
    beginning = path.read_text().partition("candidates:\n")[0]
    overrides = [candidate.removeprefix("$ ")] if candidate.startswith("$ ") else []
    own = [] if overrides else [f"own: {candidate}"]
    written = "".join(f"  {line}\n" for line in (*BESIDE, *others, *own))
    path.write_text(f"{beginning}candidates:\n{written}")
    with pytest.raises(UserError) as refused:
        tiny_experiment.run(path, *overrides)
    rest = str(refused.value)
    assert overrides or "harness.yaml:" in rest
    for part in said:
        assert part in rest
        rest = rest.partition(part)[2]
    assert not list((folder / "runs").glob("*/*"))
