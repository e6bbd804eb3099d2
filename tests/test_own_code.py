"""A Python file of the user's own is the same as long as it and what it imports from its folder are."""

import pytest

from harness import metrics
from harness.methods.command import files_digest
from harness.provenance import digest_code
from harness.records import checksum

REWARD = """\
import importlib
import json
import lengths
from words import stems
from harness.records import Output

tables = importlib.import_module("named.late")

def reward(prompts, completions, references):
    return [lengths.of(text) for text in completions]
"""
FILES = {
    "reward.py": REWARD,
    "lengths.py": "import units.scale\n\nof = len\n",
    "units/__init__.py": "",
    "units/scale.py": "from . import tables\nfrom .names import METRE\n",
    "units/tables.py": "",
    "units/names.py": "METRE = 1\n",
    "words/__init__.py": "",
    "words/stems.py": "import reward\n",
    "named/late.py": "",
    "beside.py": "",
    "units/unused.py": "",
    "harness/records.py": "",
}


@pytest.fixture
def reward(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path / "reward.py"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        *(
            (name, True)
            for name in FILES
            if name not in ("beside.py", "units/unused.py", "harness/records.py")
        ),
        ("beside.py", False),
        ("units/unused.py", False),
        ("harness/records.py", False),
    ],
)
def test_what_it_imports_from_its_folder_counts_and_nothing_else(reward, name, counts):
    before = digest_code(reward)
    (reward.parent / name).write_text(FILES[name] + "\nCHANGED = 1\n")
    assert (digest_code(reward) != before) is counts


def test_a_file_alone_has_its_checksum_whatever_stands_above_it(tmp_path):
    (tmp_path / "alone.py").write_text("import json\n")
    assert digest_code(tmp_path / "alone.py") == checksum(tmp_path / "alone.py")
    (tmp_path / "above.py").write_text("")
    file = tmp_path / "own" / "metric.py"
    file.parent.mkdir()
    file.write_text("from .. import above\n")
    assert digest_code(file) == checksum(file)


def test_the_folder_itself_is_no_part_of_it_and_metrics_and_trainers_count_alike(reward, tmp_path):
    def digests():
        return metrics.version(str(reward)), files_digest("python reward.py {data}", reward.parent, None)

    before = digests()
    (reward.parent / "lengths.py").write_text("of = hash\n")
    assert all(one != other for one, other in zip(before, digests(), strict=True))
    before = digest_code(reward)
    assert digest_code(tmp_path.rename(tmp_path.with_name("elsewhere")) / "reward.py") == before
