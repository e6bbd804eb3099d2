"""Mutated inputs: files of every reader and of the store, damaged by chance and read by the commands.

Invariant: a draw depends on its reader and its number alone. A draw fails where an exception leaves the command
or a traceback is printed, where it takes longer than `BOUND_S` of the processor, ends with a code that is not documented, or
where scores of a store whose rows are damaged differ from those of the whole one.
"""

import contextlib
import csv
import gzip
import io
import json
import os
import random
import shlex
import shutil
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mutators import mutate

# Of one draw: of the processor, of which a slow one takes 60 s to measure its speed, and by the clock.
BOUND_S, WAIT_S = 90, 300
ROOT, _MEMORY = Path(__file__).parents[1], Path("/dev/shm")
_SCORING = ("report", "gate", "decide", "compare")
# Of all draws, those of each reader.
SHARES = {"rows": 0.26, "sets": 0.04, "store": 0.29, "experiment": 0.17, "people": 0.04, "feedback": 0.05, "logs": 0.07, "base": 0.05, "cache": 0.02, "artefact": 0.01}  # fmt: skip


class TooSlow(BaseException):
    """A command that goes on for longer than it may."""


# Readers: seeds, and the commands that read them


class Reader(NamedTuple):
    """Valid seeds in a folder: which of its files are damaged, and what is run in it then.

    In a command, `{file}` is the damaged one. `protected` are the files whose damage must not move a score.
    """

    folder: Path
    files: tuple[str, ...]
    commands: tuple[str, ...]
    protected: str = "nothing"


# One row of each layout; # stands for its number.
# fmt: off
ROWS = {
    "own": '{"id": "q#", "prompt": "Where is parcel #?", "reference": "late", "cluster": "c#"}',
    "references": '{"id": #, "prompt": "Say #", "references": ["#", "number #"], "slice": "a", "date": "2026-01-01"}',
    "messages": '{"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Count to #."}, {"role": "assistant", "content": "1 to #"}]}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "Is # even?"}, {"from": "gpt", "value": "yes #"}]}',
    "alpaca": '{"instruction": "Add one to #", "input": "", "output": "more than #"}',
    "choices": '{"question": "What is 1 + #?", "choices": ["# + 1", "# + 2", "#"], "answer": 0}',
    "letters": '{"question": "#?", "A": "one", "B": "two", "C": "three", "D": "four", "answer": "B"}',
    "hub_choices": '{"question": "#?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}',
    "pairs": '{"prompt": "Greet #", "chosen": "Hello #", "rejected": "no"}',
    "pairs_of_turns": '{"chosen": [{"role": "user", "content": "Hi #"}, {"role": "assistant", "content": "Hello"}], "rejected": [{"role": "user", "content": "Hi #"}, {"role": "assistant", "content": "Go"}]}',
    "thumbs": '{"prompt": "Greet #", "completion": "Hello", "label": true}',
    "ratings": '{"prompt": "Greet #", "completions": [{"response": "Hi", "overall_score": 3.0}, {"response": "No", "overall_score": 1.0}]}',
    "tools": '{"messages": [{"role": "user", "content": "Track #"}, {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "track", "arguments": "{}"}}]}], "tools": [{"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}}}}]}',
    "passages": '{"question": "Where is crate #?", "context": "Crate # is in hall #.", "answers": {"text": ["hall #"], "answer_start": [13]}}',
    "texts": '{"text": "A brown hen walks past gate # at noon, and the desk answers."}',
}
# fmt: on
_OF_ROWS = (
    "data check {file}",
    "data check {file}",
    "data check {file} --test rows/own.jsonl",
    "data check rows/own.csv --test {file}",
    "data clean {file} --out out.jsonl",
    "data dedup {file} --out out.csv",
    "data split {file} --out out",
    "data mix {file} rows/own.jsonl --out out.parquet",
    "data sample {file} --rows 2 --out out.jsonl",
    "init new --data {file}",
)  # fmt: skip


def write_rows(folder: Path) -> Reader:
    import pyarrow
    import pyarrow.parquet

    at = folder / "rows"
    at.mkdir(parents=True)
    for name, text in ROWS.items():
        rows = [json.loads(text.replace("#", str(i))) for i in range(6)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (at / f"{name}.jsonl").write_text(lines)
        (at / f"{name}.json").write_text(json.dumps(rows, indent=1))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), at / f"{name}.parquet")
        if all(isinstance(value, str | int | float) for value in rows[0].values()):
            for ending, sign in ((".csv", ","), (".tsv", "\t")):
                with (at / f"{name}{ending}").open("w", newline="") as file:
                    written = csv.DictWriter(file, list(rows[0]), delimiter=sign)
                    written.writeheader()
                    written.writerows(rows)
            (at / f"{name}.csv.gz").write_bytes(gzip.compress((at / f"{name}.csv").read_bytes()))
        (at / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return Reader(folder, ("rows/*",), _OF_ROWS)


def write_sets(folder: Path) -> Reader:
    for kind in ("jsonl", "parquet", "csv"):
        for part in ("train", "test"):
            (folder / kind / "data").mkdir(parents=True, exist_ok=True)
            shutil.copy(
                folder.parent / "rows" / "rows" / f"own.{kind}", folder / kind / "data" / f"{part}.{kind}"
            )
        (folder / kind / "README.md").write_text("---\nlicense: mit\n---\nRows.\n")
    return Reader(
        folder, ("*/data/*", "*/README.md"), ("data check {set}", "data clean {set} --out out.jsonl")
    )


_READ_STORE = (
    "export lora --to merged --dry-run", "export lora --to merged", "report", "report --json", "gate --candidate lora --json", "gate --candidate shots", "runs list", "runs list --json",
    "runs show {lora}", "runs diff {lora} {prompt}", "runs rm --unused", "reindex", "nightly status", "decide --json",
    "rescue lora --dry-run", "compare --dry-run", "rate export out.csv", "promote lora --force --reason x", "score lora",
    "promote shots", "train lora", "eval shots", "compare --json", "nightly run", "regressions add lora sums/sum-1", "rate export out.csv --pairs", "rate import labels.csv",
    "sql 'SELECT * FROM scores'", "sql 'SELECT * FROM runs'", "sql 'SELECT * FROM samples JOIN verdicts USING (run_id)'",
    "sql 'SELECT * FROM deltas'", "sql 'SELECT * FROM training'", "sql 'SELECT * FROM ratings, lineage, trials'",
)  # fmt: skip


def write_store(finished: Path, folder: Path) -> Reader:
    """Copy a finished tiny experiment and add what its commands write: champion, labels, nights, grades, noise."""
    from fake_project import nights

    from harness import store
    from harness.records import Grade, Noise, TaskNoise

    shutil.copytree(finished, folder)
    nights(folder, 6, "tiny")
    at = store.Store(folder / "runs")
    run = next(run for run in store.list_runs(at) if run.candidate == "lora")
    answered = store.read_rows(at, run.rows["letters/test"])
    grades = [
        Grade(f"k{i}", "letters", row.example_id, row.output_digest, "ok", i % 2, "I say so.")
        for i, row in enumerate(answered)
    ]
    store.keep_grades(at, "book", {"rubric": "helpful", "judge": "big"}, grades)
    noise = Noise(
        "n", run.created, "tiny", run.base_digest, "fp32", "cpu", "hf", "l", (TaskNoise("sums", 6, {"a": 1}, 0.1),)
    )  # fmt: skip
    store.save_noise(at, noise)
    for words in (
        "promote shots --force --reason seed", "promote lora --force --reason seed", "rate export labels.csv", "rate export pairs.csv --pairs",
        "regressions add lora sums/sum-1", "report", "export lora --to merged",
    ):  # fmt: skip
        ended = run_command(folder, words)
        assert ended.code == 0, (words, ended)
    for name, column, said in (("labels.csv", "label", "1"), ("pairs.csv", "better", "left")):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            written = csv.DictWriter(file, list(rows[0]))
            written.writeheader()
            written.writerows({**row, column: said} for row in rows)
        ended = run_command(folder, f"rate import {name} --rater ann")
        assert ended.code == 0, ended
    return Reader(folder, ("runs/**/*", "reports/*"), _READ_STORE, "runs/rows/*/rows.parquet")


def write_cache(finished: Path, folder: Path) -> Reader:
    """Keep what a comparison remembers of a machine and its base, and forget its runs."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("runs"))
    (folder / "cache").mkdir()
    for words in ("compare --candidates prompt,shots", "doctor"):
        ended = run_command(folder, words)
        assert ended.code == 0, ended
    shutil.rmtree(folder / "runs")
    commands = (*["compare --candidates prompt --json"] * 3, "compare --dry-run", "doctor", "runs list")
    return Reader(folder, ("cache/**/*",), commands)


_READ_EXPERIMENT = (
    "compare --dry-run", "compare --dry-run", "report", "gate --candidate lora", "promote lora --force --reason x",
    "nightly status", "ls suites", "runs list", "champions list", "champions rollback", "rescue lora --dry-run", "regressions add lora facts/fact-1",
    "rate export out.csv", "score lora", "champions list", "champions list --json", "champions rollback 1",
    "champions show", "champions retire",
)  # fmt: skip
_JUDGED = """
  - {name: judged, data: {test: letters/test.jsonl}, metrics: [exact_match, "judge:../rubrics/helpful.yaml"], primary: exact_match}
"""
_RUBRIC = """\
criteria: The answer helps.
scale: {min: 1, max: 5}
reference: true
judge: {base_url: http://localhost:1/v1, model: big}
examples:
  - {question: "Where is it?", answer: There., grade: 4}
"""


def write_experiment(seeds: Reader) -> Reader:
    """Add a judged task, a rubric and a recipe in a file of its own to a finished experiment."""
    folder = seeds.folder.parent / "experiment"
    shutil.copytree(seeds.folder, folder)
    (folder / "rubrics").mkdir()
    (folder / "rubrics" / "helpful.yaml").write_text(_RUBRIC)
    with (folder / "suites" / "general.yaml").open("a") as file:
        file.write(_JUDGED)
    recipe = folder / "baselines" / "tuned.yaml"
    recipe.parent.mkdir(exist_ok=True)
    recipe.write_text(
        "method: lora\nparams: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}\n"
    )
    with (folder / "harness.yaml").open("a") as file:
        file.write("  tuned: tuned\n")
    files = (
        "*.yaml", "rubrics/*", "suites/*.yaml", "baselines/*.yaml", "baselines/champions/*",
        "suites/**/*.jsonl", "reports/*",
    )  # fmt: skip
    return Reader(folder, files, _READ_EXPERIMENT)


# Rows of production in their layouts; # stands for their number.
FEEDBACK = {
    "own.jsonl": '{"request": "Where is parcel #?", "answer": "late", "thumb": "down", "correction": "soon", "sender": "u#", "time": "2026-11-03T10:00:00Z", "model": "lora", "assignment": "random"}',
    "messages.jsonl": '{"messages": [{"role": "user", "content": "Greet #"}, {"role": "assistant", "content": "Hello"}], "metadata": {"thumb": 1}, "created": 176000000#}',
    "choices.jsonl": '{"prompt": "Greet #", "choices": ["Hello", "Go"], "preference": 1, "user": "me@example.org"}',
}


def write_feedback(seeds: Reader) -> Reader:
    folder = seeds.folder.parent / "feedback"
    shutil.copytree(seeds.folder, folder)
    for name, text in FEEDBACK.items():
        rows = [json.loads(text.replace("#", str(i))) for i in range(6)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "own.csv").open("w", newline="") as file:
        written = csv.DictWriter(file, list(json.loads(FEEDBACK["own.jsonl"].replace("#", "1"))))
        written.writeheader()
        written.writerows(json.loads(FEEDBACK["own.jsonl"].replace("#", str(i))) for i in range(6))
    files = (*FEEDBACK, "own.csv")
    for name in files:
        assert run_command(folder, f"feedback add {name}").code == 0, name
    return Reader(
        folder, (*files, "runs/feedback/*/*"), ("feedback add {file}", "feedback add {file}", *_READ_FEEDBACK)
    )


_READ_FEEDBACK = (
    "feedback rows --out out.jsonl",
    "feedback pairs --out out.jsonl",
    "sql 'SELECT * FROM feedback'",
)


def write_logs(folder: Path) -> Reader:
    import inspect_logs
    import lmeval_folder

    for arm, right in (("base", [1.0] * 9 + [0.0]), ("tuned", [1.0] * 7 + [0.0] * 3)):
        lmeval_folder.write(
            folder / "lm" / arm, {"arc": right, "sums": right[::-1]}, model_args=f"pretrained={arm}"
        )
        of_inspect = {"quiz": ["C" if one else "I" for one in right]}
        inspect_logs.write(folder / "zipped" / arm, of_inspect, model=f"org/{arm}")
        inspect_logs.write(folder / "plain" / arm, of_inspect, zipped=False, model=f"org/{arm}")
    commands = (
        "gate --base {arms}/base --candidate {arms}/tuned",
        "gate --base {arms}/base --candidate {arms}/tuned --json",
    )
    return Reader(folder, ("*/*/**/*",), commands)


_ON_BASE = """\
name: based
base_model: ./model
precision: fp32
device: cpu
target: suites/letters.yaml
candidates:
  prompt: {method: base}
  bought: {method: adapter, path: ./adapter}
  whole: {method: model, path: ./whole}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, max_length: 200}}
"""


def write_base(finished: Path, model: Path, folder: Path) -> Reader:
    """Write an experiment on a local base, with an adapter and a whole model made elsewhere."""
    import tiny_model

    shutil.copytree(finished / "suites", folder / "suites")
    shutil.copytree(model, folder / "model")
    shutil.copytree(model, folder / "whole")
    tiny_model.adapter_on(model, folder / "adapter", r=2, target_modules=["q_proj"])
    (folder / "harness.yaml").write_text(_ON_BASE)
    commands = (
        *["compare --dry-run"] * 4, "compare --candidates prompt,bought",
        "data check suites/letters/train.jsonl --base ./model",
    )  # fmt: skip
    return Reader(folder, ("model/*", "adapter/*", "whole/*"), commands)


def write_artefact(base: Reader) -> Reader:
    """Let a GGUF file of a base answer, in a process of its own."""
    import tiny_gguf

    folder = base.folder.with_name("artefact")
    shutil.copytree(base.folder, folder)
    tiny_gguf.write(folder / "model", folder / "model.gguf")
    with (folder / "harness.yaml").open("a") as file:
        file.write("  served: {method: artefact, path: ./model.gguf}\n")
    return Reader(folder, ("*.gguf",), ("compare --candidates served",))


def write_seeds(folder: Path, finished: Path, model: Path) -> dict[str, Reader]:
    """Write valid seeds of every reader; `finished` is a tiny experiment that was run."""
    stored = write_store(finished, folder / "store")
    based = write_base(finished, model, folder / "base")
    return {
        "rows": write_rows(folder / "rows"),
        "sets": write_sets(folder / "sets"),
        "store": stored,
        "experiment": write_experiment(stored),
        "people": stored._replace(
            files=("labels.csv", "pairs.csv"), commands=("rate import {file}",), protected="nothing"
        ),
        "feedback": write_feedback(stored),
        "cache": write_cache(finished, folder / "cache"),
        "logs": write_logs(folder / "logs"),
        "base": based,
        "artefact": write_artefact(based),
    }


# Draws


@dataclass(frozen=True)
class Ended:
    """How a command ended: its code, what it printed, and the exception that left it, with its last places."""

    code: Any
    out: str
    err: str
    escaped: str = ""
    trace: str = ""


def run_command(folder: Path, words: str) -> Ended:
    """Run a command in a folder, in this process, by the entry of the command line."""
    from harness.cli import main

    before, argv, out, err = Path.cwd(), sys.argv, io.StringIO(), io.StringIO()
    code, escaped, trace = None, "", ""
    old = {number: signal.signal(number, _end) for number in (signal.SIGALRM, signal.SIGPROF)}
    os.chdir(folder)
    sys.argv = ["harness", *shlex.split(words)]
    cache = os.environ["HARNESS_CACHE"]
    if (folder / "cache").exists():
        os.environ["HARNESS_CACHE"] = str(folder / "cache")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            signal.setitimer(signal.ITIMER_PROF, BOUND_S)
            signal.setitimer(signal.ITIMER_REAL, WAIT_S)
            try:
                main()
                code = 0
            except SystemExit as ended:
                code = ended.code or 0
            except BaseException as error:  # noqa: BLE001 (that is what is looked for)
                # Name an exception by its type and the last function of ours that it passed.
                own = [f for f in traceback.extract_tb(error.__traceback__) if "/harness/" in f.filename]
                at = (
                    f"{own[-1].filename.partition('/harness/')[2]}:{own[-1].lineno} {own[-1].name}"
                    if own
                    else "?"
                )
                escaped, trace = f"{type(error).__name__} in {at}", traceback.format_exc()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        sys.argv, os.environ["HARNESS_CACHE"] = argv, cache
        os.chdir(before)
        for number, handler in old.items():
            signal.signal(number, handler)
    return Ended(code, out.getvalue(), err.getvalue(), escaped, trace)


def _end(*_: Any) -> None:
    raise TooSlow


class Drawn(NamedTuple):
    """One draw: what was damaged and how, the command, how it ended, and what is wrong with that."""

    number: int
    file: str
    how: str
    words: str
    ended: Ended
    wrong: str


@dataclass
class Draws:
    """Draws on the seeds of one reader; each begins with what the seeds were."""

    name: str
    reader: Reader
    copy: Path

    def __post_init__(self) -> None:
        self.files = sorted(
            {
                f
                for glob in self.reader.files
                for f in self.reader.folder.glob(glob)
                if f.is_file() and "lock" not in f.name
            }
        )
        self.runs = {
            at.parent.name.split("-")[1]: at.parent.name
            for at in self.reader.folder.glob("runs/tiny-*/run.json")
        }
        self.protected = set(self.reader.folder.glob(self.reader.protected))
        self._whole: dict[str, Any] = {}

    def draw(self, number: int) -> Drawn:
        """Damage one file of a copy of the seeds, and run a command on it."""
        draw = random.Random(f"{self.name} {number}")
        seed = draw.choice(sorted(self.protected) if self.protected and draw.random() < 0.3 else self.files)
        self._copy_seeds()
        file = seed.relative_to(self.reader.folder)
        how = mutate(draw, self.copy / file)
        asked = draw.choice(self.reader.commands)
        words = asked.format(file=file, set=f"./{file.parts[0]}", arms=file.parts[0], **self.runs)
        ended = run_command(self.copy, words)
        wrong = find_wrong(ended)
        if not wrong and seed in self.protected and words.endswith("--json") and words.split()[0] in _SCORING:
            wrong = self._find_moved(words, ended, seed)
        return Drawn(number, str(file), how, words, ended, wrong)

    def _copy_seeds(self) -> None:
        if self.copy.exists():
            shutil.rmtree(self.copy)
        shutil.copytree(self.reader.folder, self.copy, symlinks=True)

    def _find_moved(self, words: str, ended: Ended, seed: Path) -> str:
        """Say that scores are others than those of the whole store while nothing is said of the damage."""
        if ended.code not in (0, 3, 4) or seed.parent.name in ended.err + ended.out:
            return ""
        if words not in self._whole:
            self._copy_seeds()
            self._whole[words] = _scores(run_command(self.copy, words).out)
        return "" if _scores(ended.out) == self._whole[words] else "scores moved in silence"


def _scores(out: str) -> list[Any]:
    """List what a result as JSON says of scores and their differences; times and sentences are others each time."""

    def collect(value: Any) -> None:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, dict) and {"score", "delta"} & value.keys():
            found.append([value.get(name) for name in ("score", "delta", "low", "high", "n")])
        for one in inner:
            collect(one)

    found: list[Any] = []
    collect(json.loads(out))
    return found


def find_wrong(ended: Ended) -> str:
    """Say what is wrong with how a command ended; empty where nothing is."""
    from harness.cli.app import EXIT_CODES

    if ended.escaped:
        return ended.escaped
    if "Traceback (most" in ended.out + ended.err:
        return "a traceback that is printed"
    if ended.code not in EXIT_CODES:
        return f"exit code {ended.code}"
    if ended.code and not ended.err.strip() and ended.code not in (1, 3, 4):
        return f"exit code {ended.code} without a word"
    return ""
