"""Study of dropping low-quality answers: LoRAs on all 64 rows, and on the rows that are kept, with three seeds.

A seeded rule damages a quarter of the rows, taken from the quickstart. `harness data check` proposes the
score, `harness data clean` drops the rows below it, and all LoRAs answer the same test items. 8 minutes on
a thread of a processor with AMX: `python -m reports.studies.dropped_rows FOLDER`.
"""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from harness import formatting
from reports.studies.claims.fine_tunes import change_over_seeds, run_recipes

_N, _N_TEST, _SHARE = 64, 60, 0.25
_SUITE = Path(__file__).parents[2] / "suites" / "support"
_OTHER_LANGUAGE = (
    "Das kann ich heute leider noch nicht sagen, bitte fragen Sie morgen noch einmal bei uns im Laden nach."
)
_EXPERIMENT = """\
name: dropped-rows
base_model: smollm2-135m
precision: fp32
target:
  name: support
  data: {train: all.jsonl, test: test.jsonl}
  metrics: [exact_match, token_f1]
  primary: METRIC
  system: "Sort messages by what is unsolved: 'queue: returns, delivery, billing or repairs | tone: calm or \
upset'. Answer questions with the fact only."
  max_new_tokens: 16
candidates:
  all: &lora
    method: lora
    params: {r: 16, target_modules: [q_proj, v_proj], learning_rate: 2.0e-3, num_train_epochs: 1,
             per_device_train_batch_size: 2}
  kept: {<<: *lora, train: kept.jsonl}
"""


def damage(answers: list[str], seed: int = 0) -> dict[int, tuple[str, str]]:
    """Map the indices of a quarter of the answers to a kind of damage (each in turn) and the damaged answer."""
    rng = random.Random(seed)
    damaged = {}
    for turn, i in enumerate(sorted(rng.sample(range(len(answers)), int(_SHARE * len(answers))))):
        words = answers[i].split()
        kinds = {
            "cut": answers[i][: max(1, len(answers[i]) // 2)],
            "repeated": " ".join(words * 5),
            "another row's": rng.choice([other for other in answers if other != answers[i]]),
            "another language": _OTHER_LANGUAGE,
        }
        kind = list(kinds)[turn % len(kinds)]
        damaged[i] = kind, kinds[kind]
    return damaged


def write_rows(folder: Path) -> dict[int, str]:
    """Write damaged training rows and test rows; return the kind of damage by line."""
    kinds: dict[int, str] = {}
    for name, written, n in (("train", "all", _N), ("test", "test", _N_TEST)):
        lines = (_SUITE / f"{name}.jsonl").read_text("utf-8").splitlines()[:n]
        rows = [{key: json.loads(line)[key] for key in ("id", "prompt", "reference", "slice")} for line in lines]
        for i, (kind, answer) in damage([r["reference"] for r in rows]).items() if name == "train" else ():
            rows[i]["reference"], kinds[i + 1] = answer, kind
        (folder / f"{written}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return kinds


def run(folder: Path, command: str) -> str:
    """Run a harness command in the folder; print the command and its output, and return the output."""
    print(f"$ {command}", flush=True)
    words = [sys.executable, "-m", *command.split()]
    printed = subprocess.run(words, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(printed, flush=True)
    return printed


def main(folder: Path) -> None:
    """Write rows in a new folder, drop those of low quality, print what was dropped, and compare."""
    folder.mkdir(parents=True)
    kinds, model = write_rows(folder), "--perplexity --base smollm2-135m"
    checked = json.loads(run(folder, f"harness data check all.jsonl {model} --json"))
    (finding,) = (f for f in checked["findings"] if f["check"] == "quality")
    min_quality = finding["title"].split("below ")[1].split()[0]
    run(folder, f"harness data clean all.jsonl --out kept.jsonl --min-quality {min_quality} {model}")
    low = {int(place.rpartition(":")[2]) for place in finding["rows"]}
    for kind, n in Counter(kinds.get(line, "undamaged") for line in range(1, _N + 1)).items():
        print(f"{kind}: {sum(kinds.get(line, 'undamaged') == kind for line in low)} of {n} dropped")
    compare(folder / "harness.yaml")


def compare(path: Path) -> None:
    """Train both with three seeds, and print each metric's change from all rows to the kept ones."""
    for metric in ("exact_match", "token_f1"):
        path.write_text(_EXPERIMENT.replace("METRIC", metric), "utf-8")
        session, runs = run_recipes(path, ("all", "kept"))
        run(path.parent, "harness compare --seeds 0,1,2")  # prints the table of the stored results
        change = change_over_seeds(session, [session.target], runs["kept"], runs["all"])
        print(f"{metric}, kept − all: {formatting.points(change.score, change.low, change.high)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
