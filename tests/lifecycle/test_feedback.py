"""Production feedback: read from logs, masked before storage, and made into rows, pairs and a difference."""

import json
import stat
from dataclasses import replace

import pytest
import tiny_experiment
from scipy import stats as scipy_stats

from harness.data.check.personal_data import redact
from harness.lifecycle.production import compare_thumbs, describe_thumbs
from harness.records import FeedbackRow
from harness.store import Store, read_feedback, save_feedback

USER = {"role": "user", "content": "Where is my lamp box?"}
SAID = {"role": "assistant", "content": "late"}
ASKED = '[{"content":"Where is my lamp box?","role":"user"}]'
FORMS = {
    "a stored completion": (
        {
            "object": "chat.completion", "created": 1790000000, "model": "lora", "messages": [USER],
            "choices": [{"index": 0, "message": SAID, "finish_reason": "stop"}],
            "metadata": {"thumb": "down", "correction": "money", "assignment": "random"},
        },
        ("late", False, "money", "", "lora", "2026-09-21T14:13:20Z", "random"),
    ),
    "a request with its response": (
        {
            "request": {"model": "m", "messages": [USER], "user": "ann"},
            "response": {"body": {"model": "m-1", "choices": [{"message": SAID}]}},
            "timestamp": "2026-01-01T12:00:00+02:00",
        },
        ("late", None, "", "", "m-1", "2026-01-01T10:00:00Z", ""),
    ),
    "two choices and the one preferred": (
        {"messages": [USER], "choices": [{"text": "late"}, {"text": "money"}], "preference": 1},
        ("late", None, "", "money", "", "", ""),
    ),
    "preference data": (
        {
            "input": {"messages": [USER]}, "preferred_output": [{"role": "assistant", "content": "money"}],
            "non_preferred_output": [SAID],
        },
        ("late", None, "", "money", "", "", ""),
    ),
    "a conversation that ends with the answer": (
        {"messages": [USER, SAID]}, ("late", None, "", "", "", "", ""),
    ),
    "columns": (
        {"request": USER["content"], "answer": "late", "thumb": 1, "time": 1790000000000},
        ("late", True, "", "", "", "2026-09-21T14:13:20Z", ""),
    ),
}  # fmt: skip
SECRETS = {
    "ann.lee@example.org": "e-mail addresses", "sk-proj-abcdefghijkl1234": "keys and tokens",
    "glpat-abcdefghijklmnop": "keys and tokens", "AKIAABCDEFGHIJKLMNOP": "keys and tokens",
    "api_key=hunter2hunter2": "keys and tokens", "password: hunter2": "keys and tokens",
    "89.160.20.112": "IP addresses", "2001:db8:85a3::8a2e:370:7334": "IP addresses",
    "536-22-1234": "US social security numbers", "4111 1111 1111 1111": "credit card numbers",
    "DE89370400440532013000": "IBANs", "+44 20 7946 0018": "phone numbers", "030 / 901820": "phone numbers",
    "ann@пример.рф": "e-mail addresses", "de89-3704-0044-0532-0130-00": "IBANs",
    "4111\u00a01111\u20091111\u20111111": "credit card numbers", "::ffff:89.160.20.112": "IP addresses",
}  # fmt: skip
NO_SECRETS = [
    "version 1.2.3 of 2024-11-03 at 12:30:45",
    "order 1234-5678, 3.14159 of 12,345,678",
    "::",
    "127.0.0.1",
]


@pytest.fixture
def desk(tmp_path, harness):
    """`harness` in a folder with an experiment whose model is not loaded."""
    tiny_experiment.write(tmp_path, tmp_path / "model", extra="feedback: {region: DE}\n")
    return harness


def log(folder, rows, name="log.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stored(folder):
    return read_feedback(Store(folder / "runs"))


@pytest.mark.parametrize("form", FORMS)
def test_a_log_is_read_in_each_form(tmp_path, desk, form):
    logged_row, expected = FORMS[form]
    desk("feedback", "add", log(tmp_path, [logged_row]), check=0)
    (row,) = stored(tmp_path)
    assert row.messages == ASKED
    assert row.request == USER["content"]
    fields = (row.answer, row.thumb, row.correction, row.preference, row.model, row.time, row.assignment)
    assert fields == expected


def test_no_personal_data_is_printed_or_written(tmp_path, desk):
    text = " and ".join(SECRETS)
    texts = dict.fromkeys(("request", "answer", "correction", "preference"), text)
    result = desk("feedback", "add", log(tmp_path, [texts | {"sender": "ann.lee@example.org"}]), check=0)
    (row,) = stored(tmp_path)
    files = (file.read_bytes().decode("latin1") for file in tmp_path.glob("runs/**/*") if file.is_file())
    all_text = "\n".join([str(row), result.stdout, result.stderr, *files])
    assert [secret for secret in SECRETS if secret.split("=")[-1].split(": ")[-1] in all_text] == []
    assert row.sender
    assert "ann" not in row.sender
    assert stat.S_IMODE((tmp_path / "runs" / "feedback").stat().st_mode) == 0o700
    problem = desk("feedback", "rows", check=2).stderr
    assert "--out" in problem


@pytest.mark.parametrize("secret", SECRETS)
def test_each_kind_of_personal_data_is_masked_and_counted(secret):
    masked, kinds = redact(f"it is {secret}, you see", "DE")
    assert secret.split("=")[-1].split(": ")[-1] not in masked
    assert dict(kinds) == {SECRETS[secret]: 1}
    assert redact(masked, "DE") == (masked, {})


@pytest.mark.parametrize("text", ["(415) 555-2671", "＋４９ １７１ ２３４５６７８"])
def test_a_number_of_the_us_and_one_of_full_width_are_masked_without_a_region(text):
    assert not {*"1234567890１２３４５６７８９０"} & {*redact(f"call {text}")[0][6:]}


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_only_looks_like_personal_data_stays(text):
    assert redact(text, "DE") == (text, {})


def test_a_log_is_added_once_and_equal_rows_in_it_all_count(tmp_path, desk):
    row = {"request": "Where is it? Call 030 901820", "answer": "late"}
    path = log(tmp_path, [row, row, {**row, "answer": "money"}])
    assert desk("feedback", "add", path, check=0).stdout.startswith("log.jsonl: 3 rows added\n")
    second_output = desk("feedback", "add", path, "feedback.region=US", check=0).stdout
    assert second_output.startswith("log.jsonl: 0 rows added, 3 are there already\n")
    problem = desk("feedback", "add", path, "feedback.region=UK", check=2).stderr
    assert "feedback.region: found 'UK'" in problem
    more = log(tmp_path, [row, {**row, "answer": "new"}], "more.jsonl")
    assert desk("feedback", "add", more, check=0).stdout.startswith("more.jsonl: 1 row added, 1 are there")
    assert len(stored(tmp_path)) == 4


def test_what_is_left_out_and_not_read_is_named(tmp_path, desk):
    image_turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    rows = [{"messages": [USER, SAID], "stars": 4, "AKIAABCDEFGHIJKLMNOP": 1}]
    rows += [{"messages": [image_turn, SAID]}, {"request": "Where?"}]
    output = desk("feedback", "add", log(tmp_path, rows), check=0).stdout
    assert "1 row, a turn that is not text, such as an image, or has no known role (log.jsonl:2)" in output
    assert "1 row, no answer (log.jsonl:3)" in output
    assert "columns that are not read: stars, …" in output


REFUSED = [
    ({"thumb": "maybe ann.lee@example.org"}, "log.jsonl:2: found another value in 'thumb'"),
    ({"preference": 1}, "log.jsonl:2: found a number, and one answer in 'preference'"),
    ({"model": "of ann.lee@example.org"}, "log.jsonl:2: found an invalid name, or one like personal data"),
    ({"time": "0001-01-01T00:00:00+05:00"}, "log.jsonl:2: found another value in 'time'"),
]


@pytest.mark.parametrize(("changed", "words"), REFUSED, ids=lambda case: str(case)[:20])
def test_a_value_that_is_not_understood_refuses_the_log_and_stores_nothing(tmp_path, desk, changed, words):
    row = {"request": "Where?", "answer": "late", "thumb": 0}
    result = desk("feedback", "add", log(tmp_path, [row, {**row, **changed}]), check=2)
    assert words in result.stderr
    assert "ann.lee" not in result.stderr
    assert not (tmp_path / "runs" / "feedback").exists()


def test_a_log_that_is_not_utf8_is_refused_without_the_personal_data_of_its_line(tmp_path, desk):
    line = f"Päckchen, {' ' * 20}030 901820, ann.lee@mail.example.org;late"
    (tmp_path / "log.csv").write_text(f"request;answer\n{line}\n", "latin-1")
    problem = desk("feedback", "add", "log.csv", check=2).stderr
    assert "from Windows-1252: iconv -f WINDOWS-1252 -t UTF-8 log.csv" in problem
    assert "ann.lee" not in problem
    assert "901820" not in problem


def test_feedback_is_a_table_of_sql_and_a_damaged_file_is_not_left_out_in_silence(tmp_path, desk):
    desk("feedback", "add", log(tmp_path, [FORMS["a stored completion"][0]]), check=0)
    query = "SELECT request, thumb, source FROM feedback"
    result_rows = json.loads(desk("sql", query, "--json", check=0).stdout)
    assert result_rows == [{"request": USER["content"], "thumb": False, "source": "log.jsonl:1"}]
    (file,) = tmp_path.glob("runs/feedback/*/rows.parquet")
    file.write_bytes(file.read_bytes()[:-9])
    problem = desk("sql", query, check=5).stderr
    assert "found other bytes than were written" in problem
    assert f"rm -r {file.parent.relative_to(tmp_path)}" in problem
    key_file = tmp_path / "runs" / "feedback" / "key"
    for damaged_key in ("", "zz", key_file.read_text()[:8], None):
        key_file.unlink() if damaged_key is None else key_file.write_text(damaged_key)
        problem = desk("feedback", "add", "log.jsonl", check=2).stderr
        assert "no whole key, but rows digested with it" in problem


def corrections(n, **fields):
    texts = {"answer": "money", "correction": "late", "preference": "late"}
    return [
        {"request": f"Nobody tells me about parcel {i}.", "sender": f"u{i % 4}", "time": 1790000000 + i}
        | texts
        | fields
        for i in range(n)
    ]


@pytest.fixture
def answered(tmp_path, harness, tiny):
    """`harness` with a log: 12 corrections of 4 senders, a test question twice, and a correction to no label."""
    tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    prompt = tiny_experiment.letters(slice(6, 7))[0]["prompt"]
    rows = [*corrections(1, request=prompt, sender="v"), *corrections(1, request=f"Hi, {prompt}", sender="x")]
    unlabelled_rows = corrections(1, correction="soon", sender="w")
    harness("feedback", "add", log(tmp_path, [*corrections(12), *rows, *unlabelled_rows]), check=0)
    return harness


def read_written(folder, name="rows.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.e2e
def test_corrections_become_rows_and_preferences_pairs_but_for_evaluated_ones(tmp_path, answered):
    result = answered("feedback", "rows", "--out", "rows.jsonl", "--per-sender", "2", check=0)
    rows = read_written(tmp_path)
    assert sorted(row["source"] for row in rows) == sorted(f"log.jsonl:{i}" for i in range(5, 13))
    assert {row["reference"] for row in rows} == {"late"}
    for reason in (
        "1 dropped: asks what is evaluated\n",
        "1 dropped: asks what is evaluated in other words",
        "1 dropped: a correction that is not a label of the task",
        "4 dropped: more than --per-sender of one sender",
    ):
        assert reason in result.stdout
    answered("data", "check", "rows.jsonl", check=0)
    answered("feedback", "pairs", "--out", "pairs.jsonl", check=0)
    pairs = read_written(tmp_path, "pairs.jsonl")
    assert len(pairs) == 13
    assert {(pair["chosen"], pair["rejected"]) for pair in pairs} == {("late", "money")}


@pytest.mark.e2e
def test_a_masked_request_is_known_as_the_test_item_that_holds_the_address(tmp_path, answered):
    question = "Please write to ann.lee@example.org about my parcel."
    test_file = tmp_path / "suites/letters/test.jsonl"
    item = json.loads(test_file.read_text().splitlines()[0]) | {"id": "mail", "prompt": question}
    test_file.write_text(test_file.read_text() + json.dumps(item) + "\n")
    mail_log = log(tmp_path, corrections(1, request=question, sender="z"), "mail.jsonl")
    answered("feedback", "add", mail_log, check=0)
    result = answered("feedback", "rows", "--out", "rows.jsonl", check=0)
    assert "2 dropped: asks what is evaluated" in result.stdout


@pytest.mark.e2e
def test_a_test_item_is_made_only_of_a_row_that_a_person_marked(tmp_path, answered):
    ids = {row.source: row.row_id for row in stored(tmp_path)}
    first_id, second_id = ids["log.jsonl:5"], ids["log.jsonl:6"]
    marks = tmp_path / "marked.csv"
    marks.write_text(f"id,marked_by,reference\n{first_id},,\nunknown,ann,late\n")
    problem = answered("feedback", "rows", "--test-items", marks, "--out", "items.jsonl", check=2).stderr
    assert "marked.csv:2: found no marked_by" in problem
    assert "marked.csv:3: found no stored row" in problem
    marks.write_text(f"id,marked_by,reference\n{first_id},ann,\n{second_id},ann,money\n")
    answered("feedback", "rows", "--test-items", marks, "--out", "items.jsonl", check=0)
    items = [(row["id"], row["reference"], row["marked_by"]) for row in read_written(tmp_path, "items.jsonl")]
    assert items == [(first_id, "late", "ann"), (second_id, "money", "ann")]
    with (tmp_path / "harness.yaml").open("a") as file:
        file.write("more_targets: [{name: live, data: {test: items.jsonl}, metrics: [exact_match]}]\n")
    answered("feedback", "rows", "--out", "rows.jsonl", "--per-sender", "9", check=0)
    row_ids = [row["id"] for row in read_written(tmp_path)]
    assert len(row_ids) == 10
    assert not {first_id, second_id} & {*row_ids}


def thumbs(model, ups, downs, senders=None, assignment="random"):
    """Make rows with thumbs, each from its own sender unless `senders` share them."""
    template = FeedbackRow("", ASKED, "late", model=model, assignment=assignment)
    rows = [replace(template, row_id=f"{model}{i}", thumb=i < ups) for i in range(ups + downs)]
    return [replace(row, sender=f"{model}{i % (senders or len(rows))}") for i, row in enumerate(rows)]


def test_thumbs_of_two_models_differ_by_welchs_interval_where_each_sender_gave_one():
    rows = thumbs("a", 60, 40) + thumbs("b", 160, 40)
    (difference,) = compare_thumbs(rows)["differences"]
    welch = scipy_stats.ttest_ind([1] * 160 + [0] * 40, [1] * 60 + [0] * 40, equal_var=False)
    expected = welch.confidence_interval()
    assert (difference["delta"], difference["low"], difference["high"]) == pytest.approx(
        (0.2, expected.low, expected.high), abs=1e-3
    )
    (shared_difference,) = compare_thumbs(thumbs("a", 60, 40, 20) + thumbs("b", 160, 40, 20))["differences"]
    assert shared_difference["senders"] == 40
    assert shared_difference["high"] - shared_difference["low"] > 0
    lines = describe_thumbs(compare_thumbs(rows), {"b": "+3.0 [+1, +5]"})
    assert "b − a: +20.0 [+9, +31] points (300 senders)" in lines[1]
    assert lines[2].endswith("b +3.0 [+1, +5]")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (thumbs("a", 60, 40, assignment="") + thumbs("b", 60, 40, assignment="sticky"), "decides nothing"),
        (thumbs("a", 60, 40) + thumbs("b", 60, 4), "no interval: fewer than 5 thumbs"),
        (thumbs("a", 60, 40, 2) + thumbs("b", 60, 40), "no interval: too few senders"),
        (thumbs("a", 9, 9) + thumbs("b", 9, 9) + thumbs("c", 9, 9), "two models with a name are compared"),
    ],
)
def test_thumbs_that_cannot_be_compared_are_named_without_an_interval(rows, words):
    comparison = compare_thumbs(rows)
    assert words in "\n".join(describe_thumbs(comparison, {}))
    assert [difference["low"] for difference in comparison["differences"]] in ([], [None])


@pytest.mark.e2e
def test_decide_shows_the_difference_of_thumbs(tmp_path, harness, tiny):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n  bag: {method: classifier}\n")
    tiny_experiment.run(path)
    save_feedback(Store(tmp_path / "runs"), "log", thumbs("prompt", 60, 40) + thumbs("bag", 160, 40))
    printed = harness("decide", check=0).stdout
    assert "  bag − prompt: +20.0 [+9, +31] points (300 senders)" in printed
    production = json.loads(harness("decide", "--json", check=0).stdout)["production"]
    assert production["differences"][0]["new"]["model"] == "bag"
