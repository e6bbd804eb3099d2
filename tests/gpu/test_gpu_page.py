"""The page of the GPU's figures is written part by part, and names features that were never run."""

import json
import re
from pathlib import Path

import bench_page
import gpu_parts
import pytest
from bench_page import Row, Table, stem
from gpu_page import NEVER_RUN, PUBLISHED, Part, read_parts, render_page

from harness.models.hardware import Machine

ROOT = Path(__file__).parents[2]
ON_THE_CPU = "test_a_tiny_model_on_the_cpu_is_measured_the_same_way"
CARD = Machine("cuda", "A card", "bf16", 5e5)


def figures(measured=5.2):
    """Return recorded figures of a part."""
    row = Row(
        "choices, 640 items", measured, "times as fast", 5.0, "lm-eval 52 s, harness 10 s", at_least=True
    )
    return json.loads(
        json.dumps(
            bench_page.make_record("a Llama", [row], CARD, [Table("Both sides:", ("who", "n"), (("we", 3),))])
        )
    )


# The page of the repository


def test_the_page_is_what_its_parts_make_of_it_and_names_files_and_cards_that_are_there():
    page = stem("gpu")
    assert page.with_suffix(".md").read_text("utf-8") == render_page(gpu_parts.PARTS, read_parts(page))
    named_files = set(re.findall(r"`(tests/\S+\.py)`", str(NEVER_RUN.lines)))
    assert len(named_files) > 10
    assert [name for name in named_files if not (ROOT / name).exists()] == []

    assert {"Unsloth", "vLLM"} <= {line[0].split()[0] for line in PUBLISHED.lines}
    for _, figure, _, card, source in PUBLISHED.lines:
        assert re.search(r"\d", figure)
        assert re.match(r"one [AH]100", card)
        assert re.fullmatch(r"\[.+\]\(https://\S+\)", source)


def test_the_parts_run_every_test_that_needs_a_gpu():
    files = (file for file in Path(__file__).parent.glob("test_gpu_*.py") if file.name != Path(__file__).name)
    gpu_tests = {
        name
        for file in files
        for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)
    }
    test_names = [test.partition("::")[2] for part in gpu_parts.PARTS for test in part.tests]
    assert len(test_names) == len(set(test_names))
    assert {name.partition("[")[0] for name in test_names} == gpu_tests - {ON_THE_CPU}


# Recorded parts


# Parts that run here, one pytest each


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Write two parts whose tests need no GPU: one passes and writes figures, one fails."""
    (tmp_path / "figures.json").write_text(json.dumps(figures()))
    (tmp_path / "conftest.py").write_text("")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  gpu: needs a GPU\n")
    (tmp_path / "test_parts.py").write_text(
        "import os, pathlib, pytest\n"
        "here = pathlib.Path(__file__).parent\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_passes():\n"
        "    with (here / 'asked').open('a') as file: file.write('passes ')\n"
        f"    pathlib.Path(os.environ['{gpu_parts.FIGURES}']).write_text((here / 'figures.json').read_text())\n"
        "def test_fails():\n"
        "    with (here / 'asked').open('a') as file: file.write('fails ')\n"
        "    assert (here / 'mended').exists()\n"
    )
    monkeypatch.setattr(gpu_parts, "_ROOT", tmp_path)
    return tuple(
        Part(name, (f"test_parts.py::test_{verb}",), f"what {name} shows")
        for name, verb in (("passing", "passes"), ("failing", "fails"))
    )


@pytest.mark.e2e
def test_parts_run_one_by_one_and_go_on_where_they_were(two, tmp_path, capsys):
    page = tmp_path / "page" / "gpu"
    assert gpu_parts.main(["all"], page, two) == 1
    expected = {"passing": "passed", "failing": "failed"}
    assert {name: end.outcome for name, end in read_parts(page).items()} == expected
    assert read_parts(page)["passing"].figures["title"] == "a Llama"
    (tmp_path / "mended").touch()
    assert gpu_parts.main(["all"], page, two) == 0
    assert (tmp_path / "asked").read_text().split() == ["passes", "fails", "fails"]
    capsys.readouterr()
    assert gpu_parts.main([], page, two) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in listed[:2]] == [["passing", "passed"], ["failing", "passed"]]
