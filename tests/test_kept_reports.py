"""Reports read back: the same report comes out, older and foreign files are dealt with."""

import json

import pytest

from harness import report
from harness.errors import UserError


def test_a_report_read_back_is_the_same(finished_run, tmp_path):
    report.write(finished_run[1], tmp_path)
    (path,) = report.kept_reports(tmp_path)
    found = report.read(path)
    assert report.to_json(found) == report.to_json(finished_run[1])
    assert report.markdown(report.experiment_document(found)) == report.markdown(
        report.experiment_document(finished_run[1])
    )
    assert found.policy == finished_run[1].policy


def test_a_report_of_another_version_is_read_as_far_as_it_goes(finished_run, tmp_path):
    report.write(finished_run[1], tmp_path)
    (path,) = report.kept_reports(tmp_path)
    plain = json.loads(path.read_text())
    plain["later"] = plain["facts"][0]["later"] = {"unknown": 1}
    del plain["policy"]
    path.write_text(json.dumps(plain))
    found = report.read(path)
    assert found.policy is None
    assert [f.label for f in found.facts] == [f.label for f in finished_run[1].facts]


@pytest.mark.parametrize("text", ["", "[]", '{"experiment": "x"}', '{"experiment": "x", "facts": 3}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="no report"):
        report.read(path)


def test_files_that_are_no_reports_are_not_listed(tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert report.kept_reports(tmp_path) == []
    assert report.kept_reports(tmp_path / "absent") == []
