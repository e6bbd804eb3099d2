"""Parts of `make gpu`, each of ten minutes at most: list them, run one, or run all unfinished ones.

Invariant: each part is a pytest process, ended at its limit; a file carries its measurements to the page,
which is written after each part. `python tests/gpu/gpu_parts.py [PART… | all]`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE.parent / "benchmarks"), str(_HERE)]

from bench_page import Row, Table, make_record  # noqa: E402
from bench_page import stem as stem_of  # noqa: E402
from gpu_page import LIMIT_S, Part, PartEnd, keep, read_parts, render_page, state  # noqa: E402

from harness.models.hardware import Machine, current_device  # noqa: E402

FIGURES = "HARNESS_GPU_FIGURES"  # the file into which tests of a part write their figures
ALL = "all"
_ROOT = _HERE.parents[1]
_ANSWERS, _BENCH = "tests/gpu/test_gpu_answers.py", "tests/gpu/test_gpu_bench.py"
_COMPARE = "tests/gpu/test_gpu_compare.py"


def _answers(*names: str) -> tuple[str, ...]:
    return tuple(f"{_ANSWERS}::test_{name}" for name in names)


def _section(index: int) -> tuple[str, ...]:
    return (f"{_BENCH}::test_a_large_model_answers_beside_lm_eval[{index}]",)


PARTS = (
    Part(
        "scores",
        _answers(
            "scores_are_those_of_one_sequence_at_a_time_on_the_cpu", "scores_in_bf16_are_near_those_in_fp32",
            "each_device_attends_and_multiplies_in_its_own_way",
            "scores_are_the_same_where_a_batch_does_not_fit",
        ),
        "packed log-likelihoods in fp32 and bf16 against plain ones on the CPU, the attention that is chosen, batches that are halved where "
        "memory runs out",
    ),
    Part(
        "answers",
        _answers(
            "answers_are_those_of_the_cpu", "adapters_switched_on_one_base_say_what_each_says_alone",
            "a_base_in_nf4_says_what_it_says_on_the_cpu", "answers_are_the_same_where_a_batch_does_not_fit",
        ),
        "generated answers against the CPU's, several adapters on one loaded base, bitsandbytes' NF4, halved batches",
    ),
    Part(
        "losses",
        _answers(
            "the_first_loss_of_a_training_is_what_scoring_says",
            "preference_training_raises_the_margin_from_nothing",
        ),
        "TRL's own loss in tiles for LoRA and QLoRA, DPO",
    ),
    Part(
        "comparison",
        (
            f"{_COMPARE}::test_every_method_trains_and_answers_on_a_gpu",
            f"{_COMPARE}::test_workers_share_a_gpu",
        ),
        "a whole comparison of the tiny model: LoRA, QLoRA, LLM.int8, full, a paged 8-bit optimiser, a head; then by two workers on one GPU",
    ),
    Part(
        "sharing", (f"{_COMPARE}::test_two_gpus_share_each_training",),
        "QLoRA, Spectrum, bottleneck adapters and DPO by two GPUs, with whole weights and by FSDP2; needs two",
    ),
    Part(
        "rewards", (f"{_COMPARE}::test_grpo_and_rloo_raise_the_reward_of_a_rule_beyond_its_noise",),
        "RLOO and GRPO on the embedded model, by a rule and by a reward model: their reward on validation before and after",
    ),
    Part(
        "drift", (f"{_COMPARE}::test_a_base_gives_its_stored_rows_again_beside_a_busy_process",),
        "the base answers all its stored rows again while another process uses the card; and the card's A/A rate",
    ),
    Part("choices", _section(0), "zero-shot multiple choice of a large model beside lm-eval's own model"),
    Part("shots", _section(1), "multiple choice behind 25 shots beside lm-eval's own model"),
    Part("generation", _section(2), "generation behind 5 shots beside lm-eval's own model"),
    Part(
        "training", (f"{_BENCH}::test_a_large_model_trains_beside_trl",),
        "LoRA beside plain TRL, QLoRA's peak memory against the estimate, FlashAttention-2 and Liger where they are installed",
    ),
)  # fmt: skip


def main(names: Sequence[str], stem: Path, parts: tuple[Part, ...] = PARTS, limit_s: float = LIMIT_S) -> int:
    """List the parts, or run the named ones; `all` selects the unfinished ones. Return the exit code."""
    by_name, ended = {p.name: p for p in parts}, read_parts(stem)
    if unknown := [name for name in names if name not in {*by_name, ALL}]:
        sys.stderr.write(f"no part {', '.join(unknown)}; one of: {', '.join([*by_name, ALL])}\n")
        return 2
    if not names:
        sys.stdout.write("".join(f"{p.name:<12}{state(ended.get(p.name))}\n" for p in parts))
        sys.stdout.write(f"make gpu ARGS=PART runs one, ARGS={ALL} those that are not done\n")
        stem.with_suffix(".md").write_text(render_page(parts, ended), encoding="utf-8")
        return 0
    open_parts = [p for p in parts if p.name not in ended or not ended[p.name].is_done]
    chosen = open_parts if ALL in names else [by_name[name] for name in names]
    outcomes = []
    for number, part in enumerate(chosen, 1):
        sys.stdout.write(f"{part.name} ({number} of {len(chosen)}, at most {limit_s:.0f} s)\n")
        sys.stdout.flush()
        part_end = run(part, limit_s)
        sys.stdout.write(f"{part.name}: {state(part_end)}\n")
        outcomes.append(part_end.outcome)
        if part_end.outcome != "skipped":  # a skipped part has no results, as without a GPU
            keep(stem, parts, part.name, part_end)
    return 0 if {*outcomes} <= {"passed", "skipped"} else 1


def run(part: Part, limit_s: float) -> PartEnd:
    """Run the tests of a part in a separate process, with a time limit."""
    with tempfile.TemporaryDirectory() as folder:
        report, figures = Path(folder) / "report.xml", Path(folder) / "figures.json"
        options = ["-m", "gpu", "-s", "-n", "0", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *part.tests]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=_ROOT, env={**os.environ, FIGURES: str(figures)}, start_new_session=True
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
        seconds = time.perf_counter() - start
        tests = _tests(report)
        outcome = _outcome(process.returncode, [o for _, o in tests], stopped=not report.exists())
        recorded = json.loads(figures.read_text("utf-8")) if figures.exists() else None
        return PartEnd(outcome, seconds, tests, recorded, current_device("cuda"))


def leave(title: str, rows: Sequence[Row], machine: Machine, tables: Sequence[Table] = ()) -> None:
    """Write a test's figures for the page if a part of `make gpu` runs the test."""
    if file := os.environ.get(FIGURES):
        Path(file).write_text(json.dumps(make_record(title, rows, machine, tables)), encoding="utf-8")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a part and everything that it started."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()


def _tests(report: Path) -> tuple[tuple[str, str], ...]:
    """Read each test's name and outcome."""
    if not report.exists():
        return ()
    tests = []
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None), "")
        outcome = {"": "passed", "skipped": "skipped"}.get(bad, "failed")
        tests.append((str(case.get("name")), outcome))
    return tuple(tests)


def _outcome(code: int | None, tests: Sequence[str], *, stopped: bool) -> str:
    if stopped:
        return "stopped"
    if tests and {*tests} == {"skipped"}:
        return "skipped"
    return "passed" if code == 0 else "failed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], stem_of("gpu")))
