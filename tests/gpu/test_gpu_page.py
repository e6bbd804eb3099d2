"""The page of the GPU's figures names what nobody has run yet, as long as there are none."""

import re
from pathlib import Path

from bench_page import stem
from never_run import NEVER_RUN

ROOT = Path(__file__).parents[2]

ON_THE_CPU = "test_a_tiny_model_on_the_cpu_is_measured_the_same_way"


def test_the_page_lists_every_test_that_was_never_run_on_a_gpu():
    page = stem("gpu")
    text = page.with_suffix(".md").read_text("utf-8")
    if page.with_suffix(".json").exists():  # `make gpu` was run, and wrote the page with its figures
        assert "| what | measured |" in text
        return
    named = set(re.findall(r"`(test_\w+)`", text))
    files = (file for file in Path(__file__).parent.glob("test_gpu_*.py") if file.name != Path(__file__).name)
    known = {
        name
        for file in files
        for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)
    }
    assert named == known - {ON_THE_CPU}


def test_the_page_lists_what_no_test_runs_on_a_gpu_and_what_is_tested_instead():
    text = stem("gpu").with_suffix(".md").read_text("utf-8")
    for line in NEVER_RUN.lines:
        assert f"| {' | '.join(map(str, line))} |" in text


def test_every_file_of_tests_that_the_page_names_is_there():
    named = set(re.findall(r"`(tests/\S+\.py)`", str(NEVER_RUN.lines)))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
