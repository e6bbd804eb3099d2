"""Reports of an experiment: on the terminal, as Markdown, HTML, JSON, CSV, JUnit and a picture.

Invariant: all formats print the same facts of one `ExperimentReport`, which the analysis has computed; a
smoke report is marked in each and never replaces a result.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from harness.analysis.gate_verdict import exit_code
from harness.analysis.verdict import WORDS
from harness.cache import make_private_folder

# fmt: off
# isort: off
from harness.report.document import (
    CAPTION, CLASSES, ERROR, Command, ResultDocument, Section, markdown, print_document, terminal_lines,
)
from harness.report.experiment_report import (
    RIGHT, WRONG, AttributionStep, ExperimentReport, ShownItem, ShownPrompt,
    describe_answer, describe_prompt, excerpt, mark_answer, show_items,
)
from harness.report.first_page import advise_more_items, advise_on_power
from harness.report.html_page import html
from harness.report.interchange import junit, read, restore, to_csv, to_json, to_plain
from harness.report.interchange import paths as kept_reports
from harness.report.pictures import front_file
from harness.report.result_tables import ScoreRow, origin, score_section, targets_section
from harness.report.sections import (
    arithmetic_lines, experiment_document, gate_document, gate_json,
)
from harness.report.terminal import print_last, terminal, terminal_table
from harness.report.training_tables import (
    compare_rates, describe_forgetting, diagnose, figure_title, front_sentence, print_tried_value,
    sets_section, trial_line, trials_section,
)
from harness.report.wording import (
    SMOKE, best_first, describe_unread, family_text, figure_text, first_result_line, last_line, live_line,
    target_text, verdict_word,
)
# isort: on
# fmt: on
from harness.spec import GatePolicy


def write(report: ExperimentReport, folder: Path) -> list[Path]:
    """Write every format, as `<experiment>.md` and so on; a smoke report as `<experiment>-smoke`.

    An empty format (JUnit without a verdict, a picture without points) is not written, and an earlier
    report's file is removed.
    """
    plain = to_json(report)
    policy = GatePolicy(on_inconclusive="fail" if report.undecided_fails else "pass")
    judged = [(f.label, f.verdict, exit_code(f.verdict, policy) != 0) for f in report.facts if f.verdict]
    forms = {
        ".md": markdown(experiment_document(report)),
        ".json": json.dumps(plain, indent=2, ensure_ascii=False) + "\n",
        ".html": html(report),
        ".csv": to_csv(report, plain["evidence"]),
        ".junit.xml": junit(judged, report.file_name) if judged else "",
        ".front.svg": front_file(report),
    }
    return write_forms(folder, report.file_name, forms)


def write_forms(folder: Path, name: str, forms: Mapping[str, str]) -> list[Path]:
    """Write texts, by suffix, as files with the same stem; an empty text removes its file."""
    make_private_folder(folder)
    texts = {folder / f"{name}{suffix}": text for suffix, text in forms.items()}
    for path, text in texts.items():
        if text:
            # Files are replaced atomically, and an error keeps the old ones.
            draft = path.with_name(f".{path.name}.part")
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
        else:
            path.unlink(missing_ok=True)
    return [path for path, text in texts.items() if text]
