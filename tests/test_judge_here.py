"""A model that runs here judges sixty rows, from two short files to a decision, through the command line."""

import csv
import json
import shutil

import pytest
import tiny_experiment
from test_cli import harness  # noqa: F401 (the fixture)

HARNESS = """\
name: desk
base_model: {model}
precision: fp32
device: cpu
target:
  name: replies
  data: {{all: ./replies.jsonl}}
  metrics: [judge:./helpful.yaml, rougeL]
  max_new_tokens: 8
  truncated_scores: true
candidates:
  prompt: {{method: base}}
  kind: {{method: base, system: Be kind.}}
"""
RUBRIC = "criteria: The reply answers what was asked.\nscale: {{min: 1, max: 5}}\njudge: {judge}\n"


@pytest.fixture
def desk(tmp_path, tiny):
    """Write sixty rows and two files; the judge is the tiny model with room for its prompts."""
    judge = shutil.copytree(tiny, tmp_path / "judge")
    written = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(json.dumps({**written, "max_position_embeddings": 4096}))
    rows = [{"prompt": f"Where is parcel {i}{i}?", "reference": f"Parcel {i}{i} is late."} for i in range(60)]
    tiny_experiment.rows(tmp_path / "replies.jsonl", rows)
    (tmp_path / "harness.yaml").write_text(HARNESS.format(model=tiny))
    (tmp_path / "helpful.yaml").write_text(RUBRIC.format(judge=judge))
    return tmp_path


def test_rows_are_judged_here_labelled_and_decided_on(harness, desk):  # noqa: F811
    planned = harness("compare", "--dry-run", cwd=desk)
    assert "judge:helpful: at most" in planned.stderr
    compared = harness("compare", cwd=desk, check=0)
    said = " ".join(compared.stdout.split())
    assert "answers graded by judge" in said
    assert "could not be read" not in said
    assert "judge:helpful is graded by a judge" in said
    harness("rate", "export", "labels.csv", "--candidates", "prompt,kind", cwd=desk)
    with (desk / "labels.csv").open(encoding="utf-8-sig", newline="") as lines:
        rows = [{**row, "label": "3"} for row in csv.DictReader(lines)]
    with (desk / "labels.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    labelled = harness("rate", "import", "labels.csv", "--rater", "ann", "--scale", "1,5", cwd=desk)
    assert f"{len(rows)} labels for judge:helpful by ann" in labelled.stdout
    decided = harness("decide", cwd=desk, check=0)
    assert "is graded by a judge" not in decided.stdout
    facts = json.loads(harness("report", "--json", cwd=desk, check=0).stdout)["facts"]
    assert [one["target"]["score"] for one in facts] == pytest.approx([0.5, 0.5]), (
        "people's 3 of 1 to 5 corrects the judge"
    )


def test_a_judge_whose_context_is_too_short_is_said_to_be_that(harness, desk, tiny):  # noqa: F811
    (desk / "helpful.yaml").write_text(RUBRIC.format(judge=tiny))
    found = " ".join(harness("compare", cwd=desk, check=None).stdout.split())
    assert "of these grades could not be asked for (a prompt of" in found
    assert "the judge's context holds 256) and count as failed answers" in found
    assert "could not be read" not in found
