"""A dry run on a machine that has seen nothing: no model is loaded, and what only loading tells is called unknown."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_experiment

from harness.cli.options import ExperimentFile
from harness.experiment import describe_stored, estimate_seconds, estimate_work, first_line, look_up
from harness.experiment.preparation.plan import BASE_ARM as ARM
from harness.formatting import seconds
from harness.models import hub

REPOSITORY = Path(__file__).parents[1]
RETRIEVING = "  dense: {prompting: {rag: {retriever: dense, model: own/nowhere, chunk_words: 30}}}\n"


@pytest.fixture
def unreadable_model(tiny, tmp_path):
    """Copy the tiny model, with weights that fail whoever loads them."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    weights = folder / "model.safetensors"
    header = (2).to_bytes(8, "little") + b"{}"  # which names none of the tensors behind it
    weights.write_bytes(header.ljust(weights.stat().st_size, b"\xff"))
    return folder


@pytest.mark.e2e
def test_a_dry_run_on_a_new_machine_loads_no_model(command, empty_cache, unreadable_model, tmp_path):
    path = tiny_experiment.write(tmp_path, unreadable_model)
    code, planned, said = command("compare", "-c", path, "--dry-run")
    assert code == 0, said
    assert planned.splitlines()[1].startswith("capability suite of the base")
    assert "unknown whether any of it is stored" in said
    assert "was never loaded on this machine, and a dry run loads no model" in said
    assert not (empty_cache / "engines").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("more", [("--rescue",), ()])
def test_a_plan_on_a_new_machine_is_that_of_a_machine_that_knows_the_base(
    command, finished_run, empty_cache, own_cache, monkeypatch, more
):
    path = finished_run[0] / "harness.yaml"

    def plan_with_cache(cache):
        monkeypatch.setenv("HARNESS_CACHE", str(cache))
        code, plan, said = command("compare", "-c", path, "--dry-run", "--json", *more)
        assert code == 0, said
        counts = {name: (w["read"], w["generated"], w["trained"]) for name, w in json.loads(plan).items()}
        return counts, said

    unknown, known = plan_with_cache(empty_cache), plan_with_cache(own_cache)
    assert unknown[0] == known[0]
    assert "unknown whether" in unknown[1]
    assert "6 of 6 runs are stored already" in known[1]


@pytest.mark.parametrize(
    ("removed", "missing", "trains"),
    [
        (["tiny-shots-s0-*"], {"shots"}, False),
        (["tiny-lora-s0-*"], {"lora"}, False),
        (["tiny-lora-s0-*", "tiny-hybrid-s0-*", "weights/*"], {"bag", "lora", "hybrid"}, True),
        (["tiny-shots-s0-*", "rows/*"], {ARM, "prompt", "shots", "ranked", "bag", "lora", "hybrid"}, False),
    ],
)
def test_the_plan_of_a_run_that_goes_on_holds_what_is_missing(copy, removed, missing, trains):
    for folder in [found for pattern in removed for found in (copy.parent / "runs").glob(pattern)]:
        shutil.rmtree(folder)
    session, loaded = ExperimentFile(config=copy).open_session()
    stored = look_up(session, loaded.selected)
    whole, work = (estimate_work(session, loaded.selected, found=found) for found in (None, stored))
    assert set(work) == missing
    assert bool(sum(one.trained for one in work.values())) is trains
    whole_s, missing_s = (sum(estimate_seconds(session, of).values()) for of in (whole, work))
    n_done = 6 - len(missing - {ARM})
    said = describe_stored(session, stored, missing_s)
    rest = f"; the others take about {seconds(missing_s)}" if n_done else ""
    assert said == f"{n_done} of 6 runs are stored already{rest}"
    line = first_line(session, 6, whole_s, missing_s)
    assert f"; about {seconds(missing_s)} for what is missing, about {seconds(whole_s)} from nothing" in line


@pytest.mark.e2e
def test_a_dry_run_counts_retrieved_passages_without_the_model_that_finds_them(
    command, empty_cache, unreadable_model, tmp_path
):
    path = tiny_experiment.write(tmp_path, unreadable_model, "  prompt: {method: base}\n" + RETRIEVING)
    letters = tmp_path / "suites" / "letters.yaml"
    letters.write_text(letters.read_text().replace("data: {", "data: {documents: letters/help.jsonl, "))
    pages = [{"id": f"p{n}", "title": "Parcels", "text": "A parcel takes two days. " * 5} for n in range(4)]
    tiny_experiment.rows(tmp_path / "suites" / "letters" / "help.jsonl", pages)
    code, planned, said = command("compare", "-c", path, "--dry-run", "--json")
    assert code == 0, said
    plan = json.loads(planned)
    assert plan["dense"]["read"] > plan["prompt"]["read"] > 0


@pytest.mark.e2e
def test_a_dry_run_names_leaks_in_other_words_of_the_rows_that_a_candidate_names(
    command, empty_cache, unreadable_model, tmp_path
):
    own = "  prompt: {method: base}\n  lora: {method: lora, train: suites/letters/more.jsonl}\n"
    path = tiny_experiment.write(tmp_path, unreadable_model, own)
    tested = tiny_experiment.letters(slice(6, 7))
    more = [{**row, "prompt": f"Hi there! {row['prompt']} Thanks!"} for row in tested]
    tiny_experiment.rows(tmp_path / "suites" / "letters" / "more.jsonl", more)
    code, _, said = command("compare", "-c", path, "--dry-run")
    assert code == 0, said
    assert "lora: suites/letters/more.jsonl: 6 rows may be evaluated items in other words" in said


def test_what_is_known_of_the_packed_model_is_what_its_files_will_say(empty_cache):
    packed = hub.resolve("smollm2-135m", unpacks=False)
    assert packed.n_parameters == 134_515_008
    shape = hub.shape(packed)
    per_layer = 2 * shape.hidden * (shape.n_heads + shape.n_kv_heads) * shape.head_dim
    per_layer += 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    assert shape.in_embeddings + shape.n_layers * per_layer + shape.hidden == packed.n_parameters


@pytest.mark.e2e
def test_a_rescue_is_not_planned_where_nobody_knows_what_is_stored(command, finished_run, empty_cache):
    code, planned, said = command("rescue", "lora", "-c", finished_run[0] / "harness.yaml", "--dry-run")
    assert (code, planned) == (5, "")
    assert "unknown whether lora is stored as written now" in said
    assert "harness report, which loads it once" in said
    assert not (empty_cache / "engines").exists()


@pytest.mark.e2e
def test_a_dry_run_takes_a_peft_family_on_the_packed_model(command, empty_cache, tmp_path):
    path = tiny_experiment.write(
        tmp_path, "smollm2-135m", "  ia3: {method: peft, params: {peft_type: IA3}}\n"
    )
    code, planned, said = command("compare", "-c", path, "--dry-run", "--json")
    assert code == 0, said
    assert json.loads(planned)["ia3"]["trained"] > 0


@pytest.mark.e2e
@pytest.mark.parametrize("file", ["harness.yaml", "full.yaml"])
def test_the_quickstart_is_planned_without_a_problem(command, empty_cache, file):
    code, planned, said = command("compare", "-c", REPOSITORY / file, "--dry-run", "--json")
    assert code == 0, said
    assert json.loads(planned)["ranked"]["read"] > json.loads(planned)["prompt"]["read"]


@pytest.mark.e2e
def test_a_plan_and_a_report_say_how_many_shots_are_missing(command, tiny, tmp_path, own_cache):
    path = tiny_experiment.write(tmp_path, tiny, "  shots: {prompting: {few_shot: {shots: 31}}}\n")
    short = "shots: shows 18 of 18 items fewer than 31 shots, 30 at the least: letters has 30 training rows"
    code, _, said = command("compare", "-c", path, "--dry-run")
    assert (code, said.splitlines().count(short)) == (0, 1)
    assert short in tiny_experiment.run(path).notes
    path = tiny_experiment.write(tmp_path, tiny, "  shots: {prompting: {few_shot: {shots: 30}}}\n")
    assert "fewer than" not in command("compare", "-c", path, "--dry-run")[2]
