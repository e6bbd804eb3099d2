"""A model that runs here judges sixty rows, from two short files to a decision, through the command line."""

import csv
import json
import re

import pytest
import tiny_experiment
import tiny_model

HARNESS = (
    tiny_experiment.DESK
    + """\
  name: replies
  data: {{all: ./replies.jsonl}}
  metrics: [judge:./helpful.yaml, rouge]
  max_new_tokens: 8
  truncated_scores: true
candidates:
  prompt: {{method: base}}
  kind: {{method: base, system: Be kind.}}
"""
)
RUBRIC = "criteria: The reply answers what was asked.\nscale: {{min: 1, max: 5}}\njudge: {judge}\n"


@pytest.fixture
def desk(tmp_path, tiny):
    """Write sixty rows and two files; the judge is the tiny model with room for its prompts."""
    judge = tiny_model.copy(tiny, tmp_path / "judge", max_position_embeddings=4096)
    rows = [{"prompt": f"Where is parcel {i}{i}?", "reference": f"Parcel {i}{i} is late."} for i in range(60)]
    tiny_experiment.rows(tmp_path / "replies.jsonl", rows)
    (tmp_path / "harness.yaml").write_text(HARNESS.format(model=tiny))
    (tmp_path / "helpful.yaml").write_text(RUBRIC.format(judge=judge))
    return tmp_path


@pytest.mark.e2e
def test_rows_are_judged_here_labelled_and_decided_on(harness, desk):
    planned = harness("compare", "--dry-run", cwd=desk)
    assert "judge:helpful: at most" in planned.stderr
    said = " ".join(harness("compare", "--verbose", cwd=desk, check=0).stdout.split())
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


def hold(desk, n_tokens):
    """Let the judge's context hold so many tokens."""
    file = desk / "judge" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": n_tokens}))


@pytest.mark.e2e
def test_a_judge_that_can_read_no_item_is_refused_before_anything_is_answered(harness, desk):
    hold(desk, 256)
    for command in ("compare", "doctor"):
        refused = harness(command, cwd=desk, check=2)
        assert re.search(
            r"judge:helpful: judge: found prompts of \d+ tokens and more for replies, before any answer;"
            r" expected at most 256, the context of judge; next: shorter criteria",
            refused.stderr,
        )
    assert "the context of judge holds" not in harness("compare", cwd=desk, check=2).stderr
    assert not list((desk / "runs").glob("rows/*"))


@pytest.mark.e2e
def test_a_judge_that_may_not_read_the_longest_answers_is_named_beforehand(harness, desk):
    hold(desk, 256)
    said = harness("compare", "--dry-run", cwd=desk).stderr
    shortest = int(re.search(r"up to (\d+) tokens", " ".join(said.split()))[1]) - 8
    hold(desk, shortest)
    for command in (("compare", "--dry-run"), ("doctor",)):
        said = " ".join(harness(*command, cwd=desk).stderr.split())
        assert f"the context of judge holds {shortest} tokens" in said
        assert "items of replies are longer" in said
    found = " ".join(harness("compare", cwd=desk, check=None).stdout.split())
    assert "of these grades could not be asked for (a prompt of" in found
    assert f"the judge's context holds {shortest}) and count as failed answers" in found
    assert "could not be read" not in found
    hold(desk, shortest + 8)
    assert "the context of judge" not in harness("compare", "--dry-run", cwd=desk).stderr
