"""Requests to the base: first on the target, and on the suites once for all folders."""

import json
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_experiment
from test_store import IDENTITY, OTHER, complete, make_rows
from tiny_experiment import runs_of

from harness import store
from harness import store as stores
from harness.cache import cache_dir
from harness.config.files import SHIPPED_SUITES, suite_files
from harness.records import Origin
from harness.store import Store
from harness.store.garbage import find_base_rows, keep_base_rows

pytestmark = pytest.mark.usefixtures("own_cache")


HERE = {"device": "a processor", "threads": "2"}
KERNELS = {"capability": "AVX2", "flags": "avx avx2"}
SHIPPED = Path(__file__).parents[2] / "suites" / "general"
IDS = [row.example_id for row in make_rows(3)]

SUITE = f"""\
name: general
role: capability
tasks:
  - {{name: sums, kind: choice, data: {{test: {SHIPPED}/arithmetic.jsonl}}, metrics: [accuracy], limit: 6}}
  - {{name: words, data: {{test: {SHIPPED}/instructions.jsonl}}, metrics: [contains], max_new_tokens: 4, limit: 6}}
  - {{name: prose, kind: bits_per_byte, data: {{test: {SHIPPED}/prose_text.jsonl}}, metrics: [bits_per_byte], limit: 4}}
"""


class ProgressLog:
    """Progress that records stages and lines in order."""

    def __init__(self):
        self.lines, self.items = [], []

    @contextmanager
    def stage(self, label, expected_s=0.0):
        self.lines.append(label)
        yield lambda n_done, total, note="": None

    def show(self, candidate, line, *items):
        self.lines.append(line)
        self.items += items

    finish = show


def stages(path, *overrides, candidates=("prompt",)):
    progress = ProgressLog()
    report = tiny_experiment.run(path, *overrides, candidates=candidates, progress=progress)
    return report, progress.lines


def select_base_labels(stage_labels):
    return [label for label in stage_labels if label.startswith("base: ")]


def experiment(tmp_path, name, tiny):
    """Write an experiment whose capability suite ships with the package."""
    (tmp_path / name).mkdir()
    path = tiny_experiment.write(tmp_path / name, tiny)
    (path.parent / "suites" / "general.yaml").write_text(SUITE)
    return path


def list_kept_files():
    return sorted((cache_dir() / "base_rows").glob("*"))


@pytest.mark.e2e
def test_a_second_experiment_asks_the_base_nothing_and_rows_of_a_target_or_a_fine_tune_stay_in_their_folder(
    tmp_path, tiny
):
    paths = [experiment(tmp_path, name, tiny) for name in ("one", "two")]
    first, stage_labels = stages(paths[0], candidates=("prompt", "lora"))
    assert select_base_labels(stage_labels) == ["base: sums/test", "base: words/test", "base: prose/test"]
    rows_ = stores.read_rows(Store(paths[0].parent / "runs"), runs_of(paths[0])["prompt"].rows["words/test"])
    cache = b"".join(path.read_bytes() for path in list_kept_files())
    assert len(list_kept_files()) == 3
    assert rows_[0].example_id.encode() in cache
    assert b"Please look at my" not in cache
    assert cache_dir().joinpath("base_rows").stat().st_mode & 0o077 == 0

    second, stage_labels = stages(paths[1])
    assert select_base_labels(stage_labels) == []
    assert "prompt: letters/test" in stage_labels
    (mine, _), (theirs,) = first.facts, second.facts
    assert (mine.name, mine.state, mine.target) == (theirs.name, theirs.state, theirs.target)
    assert runs_of(paths[1])["prompt"].latency["n"] > 0
    for path in paths:
        rows = runs_of(path)["prompt"].rows.values()
        assert all(stores.origins(Store(path.parent / "runs"), digest) for digest in rows)
    first_rows, second_rows = (rows_of(path, runs_of(path)["prompt"]) for path in paths)
    suite = [name for name in first_rows if not name.startswith("letters")]
    assert len(suite) == 3
    assert {name: first_rows[name] for name in suite} == {name: second_rows[name] for name in suite}


@pytest.mark.e2e
def test_rows_of_a_suite_of_the_users_own_or_in_their_words_stay_in_their_folder(tmp_path, tiny):
    stages(tiny_experiment.write(tmp_path, tiny))
    assert list_kept_files() == []

    path = experiment(tmp_path, "one", tiny)
    words = "name: words, system: Our secret terms."
    (path.parent / "suites" / "general.yaml").write_text(SUITE.replace("name: words", words))
    stages(path)
    assert len(list_kept_files()) == 2


@pytest.mark.e2e
def test_a_task_with_an_item_that_the_target_holds_too_stays_in_its_folder(tmp_path, tiny):
    path = experiment(tmp_path, "one", tiny)
    held = [json.loads(line) for line in SHIPPED.joinpath("instructions.jsonl").read_text().splitlines()]
    letters = tiny_experiment.letters(slice(6, 8))
    pairs = zip(letters, held[: len(letters)], strict=True)
    mixed = [{**letter, "prompt": item["prompt"]} for letter, item in pairs]
    tiny_experiment.rows(path.parent / "suites" / "letters" / "test.jsonl", mixed)
    suite = path.parent / "suites" / "general.yaml"
    suite.write_text(SUITE.replace("max_new_tokens: 4, limit: 6", "max_new_tokens: 4"))
    stage_labels = stages(path)[1]
    assert len(select_base_labels(stage_labels)) == 3
    assert len(list_kept_files()) == 2


def test_the_suites_that_ship_are_those_that_are_named(tmp_path):
    assert {file.stem for file in suite_files(tmp_path / "nothing")} == set(SHIPPED_SUITES)


@pytest.fixture
def stored_base(tmp_path):
    """Keep three rows; returns the store that holds them."""
    at = Store(tmp_path / "runs")
    store_rows(at, IDENTITY)
    keep_base_rows(at, IDENTITY, HERE, KERNELS)
    return at


def store_rows(at, identity, environment=HERE):
    complete(at, identity, make_rows(3))
    stores.keep_origin(at, identity.digest, 0, Origin(stores.keep_environment(at, environment)))


def test_rows_are_found_in_the_same_environment_and_no_more_items_than_are_kept(stored_base, tmp_path):
    other_store = Store(tmp_path / "other")
    assert not find_base_rows(other_store, IDENTITY, IDS, HERE | {"threads": "1"}, KERNELS)
    assert not find_base_rows(other_store, IDENTITY, IDS, HERE, KERNELS | {"capability": "DEFAULT"})
    assert not find_base_rows(other_store, replace(IDENTITY, precision="bf16"), IDS, HERE, KERNELS)
    assert find_base_rows(other_store, IDENTITY, IDS, HERE, KERNELS)
    assert stores.read_rows(other_store, IDENTITY.digest) == stores.read_rows(stored_base, IDENTITY.digest)
    assert stores.origins(other_store, IDENTITY.digest) == stores.origins(stored_base, IDENTITY.digest)
    assert not find_base_rows(other_store, IDENTITY, [*IDS, "another"], HERE, KERNELS)
    assert find_base_rows(other_store, IDENTITY, IDS[:2], HERE, KERNELS)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40] + b"x" + b[41:], lambda b: b""])
def test_a_damaged_file_is_as_if_absent(stored_base, tmp_path, damage):
    (path,) = list_kept_files()
    path.write_bytes(damage(path.read_bytes()))
    assert not find_base_rows(Store(tmp_path / "other"), IDENTITY, IDS, HERE, KERNELS)
    keep_base_rows(stored_base, IDENTITY, HERE, KERNELS)
    assert find_base_rows(Store(tmp_path / "other"), IDENTITY, IDS, HERE, KERNELS)


def test_the_least_recently_used_rows_go_first(stored_base, tmp_path):
    store_rows(stored_base, OTHER)
    for identity, age in ((IDENTITY, 200), (OTHER, 100)):
        keep_base_rows(stored_base, identity, HERE, KERNELS)
        newest = max(list_kept_files(), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (newest.stat().st_atime, newest.stat().st_mtime - age))
    assert find_base_rows(Store(tmp_path / "other"), IDENTITY, IDS, HERE, KERNELS)  # used now
    third = replace(IDENTITY, task="third")
    store_rows(stored_base, third)
    room = max(path.stat().st_size for path in list_kept_files()) * 2 + 100
    keep_base_rows(stored_base, third, HERE, KERNELS, bound_bytes=room)
    new = Store(tmp_path / "new")
    was_found = [find_base_rows(new, identity, IDS, HERE, KERNELS) for identity in (IDENTITY, OTHER, third)]
    assert was_found == [True, False, True]
    assert stores.base_rows_use().n_bytes <= room


def lines(path, *overrides, candidates=("prompt", "bag"), log=None):
    log = log or ProgressLog()
    tiny_experiment.run(path, *overrides, candidates=candidates, progress=log)
    once = ("getting ", "loading ", "measuring short steps")  # only in the first test of a session
    return [line for line in log.lines if not line.startswith(once)]


@pytest.fixture(scope="module")
def file_and_lines(tmp_path_factory, tiny):
    path = tiny_experiment.write(tmp_path_factory.mktemp("begun"), tiny)
    return path, lines(path)


def rows_of(path, run):
    return {name: store.read_rows(Store(path.parent / "runs"), digest) for name, digest in run.rows.items()}


def test_a_score_on_the_target_stands_before_the_base_is_asked_and_is_the_one_it_ends_with(file_and_lines):
    _, shown_lines = file_and_lines
    assert shown_lines[0] == "prompt: letters/test"
    assert shown_lines[1].startswith("prompt: EM ")
    assert shown_lines[1].endswith(", a first result; next, the capability suite of the base")
    assert shown_lines[2:5] == ["base: sums/test", "base: facts/test", "base: prose/test"]
    assert shown_lines[5] == "capability suite of the base: measured on 3 tasks"
    assert shown_lines[6:8] == ["control arm: the base again", "prompt: letters/validation"]
    last = next(line for line in shown_lines[2:] if line.startswith("prompt: EM "))
    assert last.startswith(f"{shown_lines[1].partition(',')[0]},{shown_lines[1].split(',')[1]} · ")
