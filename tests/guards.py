"""Guards of docs/security.md and the tests that hold them: each fails where its guard is taken out of the code.

Invariant: a guard is a text that stands once in its file, so that it can be taken out of a copy of the checkout.
"""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BOUND_S, BOUND_BYTES = 120, 6 * 2**30  # of a test without its guard, which may go on for ever


class Guard(NamedTuple):
    """A text of a file that stands there once, and what stands there without the guard."""

    test: str
    file: str
    text: str
    without: str


GUARDS = tuple(Guard(*one) for one in (
    # Files of rows and logs
    ("data/test_bombs.py::test_a_file_of_rows_that_takes_gigabytes_is_refused_with_the_bound[texts.parquet]", "harness/data/text_files.py", "if n_unpacked > _SMALL and n_unpacked > _MOST_RATIO * n_packed:", "if False:"),
    ("data/test_bombs.py::test_a_log_of_inspect_that_takes_gigabytes_is_refused_with_the_bound", "harness/lifecycle/inspect_logs.py", "refuse_bomb(str(path), sum(info.file_size for info in members), path.stat().st_size, step)", "pass"),
    ("lifecycle/test_release.py::test_a_file_of_json_that_is_larger_than_is_read_is_refused_with_the_bound", "harness/lifecycle/eval_logs.py", "if (size := path.stat().st_size) > MOST_BYTES:", "if (size := 0):"),
    ("data/test_bombs.py::test_what_is_nested_too_deep_is_no_json", "harness/records/serialization.py", "_DEEPEST = 100 ", "_DEEPEST = 10**9 "),
    ("data/test_bombs.py::test_yaml_whose_aliases_stand_for_billions_is_refused[harness.yaml-a long text]", "harness/config/yaml_loading.py", "_MOST_VALUES = 100_000 ", "_MOST_VALUES = 10**99 "),
    ("lifecycle/test_release.py::test_a_link_to_a_folder_of_logs_is_named_as_not_followed", "harness/lifecycle/gate_of_logs.py", "if link.is_symlink() and link.is_dir())", "if False)"),
    ("data/test_mutated_inputs.py::test_a_damaged_file_is_named_or_what_it_held_is_computed_again[e2e-rows]", "harness/data/text_files.py", "    except _BROKEN as error:", "    except ZeroDivisionError as error:"),
    # What is shown
    ("report/test_report_page.py::test_no_cell_of_csv_is_a_formula", "harness/report/escape.py", "return f\"'{cell}\" if cell.startswith(_FORMULA) else cell", "return cell"),
    ("report/test_report_page.py::test_text_of_models_and_files_is_text_on_the_page", "harness/report/html_page.py", "autoescape=True", "autoescape=False"),
    ("report/test_report.py::test_markdown_escapes_what_would_open_a_cell_or_a_tag", "harness/report/escape.py", '.replace("<", "&lt;")', ""),
    ("report/test_report_page.py::test_no_control_or_direction_character_reaches_the_terminal", "harness/report/escape.py", "visible = text if text.isprintable() else \"\".join(filter(_visible, _ANSI.sub(\"\", text)))", "visible = text"),
    ("dashboard/test_dashboard.py::test_hostile_answers_are_text", "dashboards/parts/safe_text.py", "_show_named(name, escape(clean_and_cut(text)))", "_show_named(name, text)"),
    # The dashboard
    ("dashboard/test_dashboard_command.py::test_a_page_of_another_site_reaches_neither_pages_nor_the_web_socket", "dashboards/parts/server.py", "if len(hosts) != 1 or any(", "if False and any("),
    ("dashboard/test_dashboard_command.py::test_a_page_of_another_site_reaches_neither_pages_nor_the_web_socket", "dashboards/parts/server.py", "is_local = _NAMED_LOCAL.fullmatch(hosts[0]) is not None", "is_local = True"),
    ("dashboard/test_dashboard_command.py::test_beyond_this_machine_it_asks_for_the_token_that_it_printed", "dashboards/parts/server.py", "if self._is_token(HTTPConnection(scope).cookies.get(_COOKIE, \"\")):", "if True:"),
    ("dashboard/test_dashboard_command.py::test_it_listens_on_this_machine_sends_nothing_and_the_pages_learn_what_to_show", "harness/cli/runs.py", '"browser.gatherUsageStats": "false",', ""),
    ("store/test_sql.py::test_a_query_reads_and_writes_no_file_but_the_stored_rows", "harness/store/index.py", 'db.execute("SET enable_external_access = false")', "pass"),
    # Models, adapters and archives
    ("lifecycle/test_champions.py::test_weights_are_hashed_anew_though_a_changed_file_has_its_size_and_time[base]", "harness/models/hub.py", "files if checksum(file) != file_checksum(file)", "files if False"),
    ("lifecycle/test_champions.py::test_weights_are_hashed_anew_though_a_changed_file_has_its_size_and_time[added]", "harness/evaluation/runner.py", "if now.get(name) != champion.files.get(name):", "if False:"),
    ("models/test_adapter.py::test_pickled_weights_are_refused_unless_asked_for", "harness/methods/made_elsewhere.py", 'elif not recipe.params.get("allow_pickle"):', "elif False:"),
    ("models/test_adapter.py::test_a_pickle_that_holds_more_than_tensors_is_not_opened", "harness/methods/made_elsewhere.py", "weights_only=True", "weights_only=False"),
    ("experiment/test_model_elsewhere.py::test_a_pickled_base_is_refused_with_the_lines_that_save_it_again", "harness/models/hub.py", 'if not weights and any(path.glob("*.bin")):', "if False:"),
    ("project/test_security_page.py::test_code_in_a_models_folder_is_never_run[model]", "harness/models/devices.py", "        trust_remote_code=False,\n", "        trust_remote_code=True,\n"),
    ("project/test_security_page.py::test_code_in_a_models_folder_is_never_run[tokenizer]", "harness/models/hub.py", "trust_remote_code=False", "trust_remote_code=True"),
    ("project/test_security_page.py::test_a_chat_template_reaches_nothing_of_python", "harness/models/chat_templates.py", "class _BoundedEnvironment(ImmutableSandboxedEnvironment):", "import jinja2\n\n\nclass _BoundedEnvironment(jinja2.Environment):"),
    ("models/test_template_families.py::test_a_template_that_never_ends_is_stopped_with_the_bound[loops]", "harness/models/chat_templates.py", "MOST_STEPS = 1_000_000", "MOST_STEPS = 10**15"),
    ("models/test_template_families.py::test_a_template_that_never_ends_is_stopped_with_the_bound[a repeated text]", "harness/models/chat_templates.py", "MOST_SIGNS = 20_000_000", "MOST_SIGNS = 10**15"),
    ("models/test_template_families.py::test_special_tokens_in_a_text_of_the_user_are_text", "harness/models/tokenization.py", "return str(mark_control_tokens(text, special))", "return text"),
    ("evaluation/test_lm_eval_tasks.py::test_a_data_set_with_code_of_its_own_or_sampled_answers_is_refused", "harness/evaluation/lm_eval/tasks.py", 'if options.get("trust_remote_code") and not trusted:', "if False:"),
    ("models/test_hub.py::test_what_does_not_match_its_checksum_is_not_used", "harness/models/hub.py", "return file_checksum(folder / _WEIGHTS) == str(expected)", "return bool(expected)"),
    ("models/test_artefacts.py::test_an_artefact_that_is_prompted_otherwise_or_cannot_be_read_fails_and_the_others_go_on", "harness/evaluation/runner.py", "            if run != artefact:\n", "            if False:\n"),
    ("exports/test_exports.py::test_a_folder_is_checked_by_content_alone", "harness/store/runs.py", "!= file.bytes or records.checksum(on_disk[name]) != file.sha256:", "!= file.bytes:"),
    ("exports/test_exports.py::test_a_folder_is_checked_by_content_alone", "harness/store/runs.py", "for name in sorted(on_disk.keys() - export.files.keys() - {EXPORT_RECORD}):", "for name in ():"),
    # Stored runs and names
    ("store/test_strange_store.py::test_a_run_that_names_a_path_is_damaged_and_nothing_is_removed_by_it", "harness/records/serialization.py", "return 0 < n_bytes <= LONGEST_NAME and not is_path", "return True"),
    ("store/test_strange_store.py::test_a_champion_that_names_a_path_is_refused", "harness/records/serialization.py", "return 0 < n_bytes <= LONGEST_NAME and not is_path", "return True"),
    ("store/test_strange_store.py::test_a_run_in_a_folder_of_something_else_is_no_run", "harness/store/layout.py", "if run.run_id != folder or", "if False and"),
    ("store/test_strange_store.py::test_a_link_in_a_store_is_named_before_anything_is_removed", "harness/store/layout.py", "if (parent := below.joinpath(*names[:end])).is_symlink():", "if (parent := below) is None:"),
    ("store/test_strange_store.py::test_a_name_in_an_experiment_file_is_one_of_a_file", "harness/spec/task.py", 'NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\\-]{0,99}$"', 'NAME = r"^.*$"'),
    ("store/test_strange_store.py::test_a_folder_that_will_hold_rows_is_not_readable_by_others", "harness/cache.py", "folder.mkdir(mode=0o700, exist_ok=True)", "folder.mkdir(exist_ok=True)"),
    ("store/test_store.py::test_rows_that_were_changed_so_that_no_reader_stumbles_are_not_had", "harness/store/parquet_files.py", "return None if checksums is None else actual in checksums", "return True"),
    ("lifecycle/test_feedback.py::test_no_personal_data_is_printed_or_written", "harness/lifecycle/feedback.py", "hidden, kinds = redact(text, region)", "hidden, kinds = text, {}"),
    ("lifecycle/test_champions.py::test_a_champion_that_was_changed_by_hand_is_refused_and_the_printed_step_restores_it", "harness/store/champions.py", "if written not in (None, history.file, History(history.entries[:-1]).file):", "if False:"),
    # Answers
    ("metrics/test_code_tests.py::test_nothing_runs_unless_somebody_allows_it", "harness/metrics/_run_code.py", 'if os.environ.get(ALLOWED) != "1":', "if False:"),
    ("metrics/test_code_tests.py::test_a_program_reaches_nothing_of_the_machine", "harness/metrics/_run_code.py", '"--net", ', ""),
    ("metrics/test_code_tests.py::test_a_fork_bomb_is_bounded_and_nothing_of_it_is_left", "harness/metrics/_run_code.py", " --nproc={limits.processes}", ""),
    ("evaluation/test_judges.py::test_thirty_answers_that_instruct_the_judge_gain_nothing_though_it_obeys_what_stands_outside_the_marks", "harness/evaluation/judges.py", "word = digest(plain)[:8]  # in none of the texts, and unknown to their authors\n    while any(word in text for text in plain):", 'word = "aaaaaaaa"\n    while not word:'),
    ("evaluation/test_rubrics.py::test_what_could_end_a_turn_is_broken_up", "harness/evaluation/judges.py", '_CONTROL.sub(lambda match: f"{match[0]} ", text)', "text"),
    ("metrics/test_metrics.py::test_a_pattern_that_takes_for_ever_on_an_answer_leaves_it_unscored", "harness/metrics/follows.py", "signal.setitimer(signal.ITIMER_VIRTUAL, _MOST_S)", "pass"),
    ("metrics/test_metrics.py::test_a_schema_that_is_none_or_would_be_fetched_is_refused", "harness/metrics/follows.py", ", registry=Registry()", ""),
    # Secrets
    ("lifecycle/test_feedback.py::test_no_personal_data_is_printed_or_written", "harness/lifecycle/feedback.py", "_digest(key, logged.sender) if logged.sender", "logged.sender if logged.sender"),
    ("core/test_secrets.py::test_a_secret_is_masked_in_every_form_and_stays_masked", "harness/masking.py", 'return _OPTION.sub(_mask_value, text) if "-" in text else text', "return text"),
    ("core/test_secrets.py::test_nothing_that_a_run_writes_or_prints_has_a_secret", "harness/training/job.py", "json.dumps(mask_values(job), indent=2)", "json.dumps(job, indent=2)"),
    ("models/test_openai_api.py::test_a_wrong_key_is_said_and_never_shown_and_that_of_another_provider_never_sent", "harness/models/openai_api.py", "if name else _NO_KEY", 'if name else os.environ.get("OPENAI_API_KEY", _NO_KEY)'),
    ("models/test_openai_api.py::test_what_went_wrong_is_kept_as_it_is_but_for_the_key", "harness/models/openai_api.py", 'hidden = text.replace(self._key, "…") if self.settings.api_key_env else text', "hidden = text"),
    ("models/test_openai_api.py::test_sensitive_rows_are_sent_to_nobody_elses_server", "harness/evaluation/runner.py", 'if "sensitive_data" in experiment.decide.needs and settings.leaves_machine:', "if False:"),
    # Serving
    ("exports/test_serving.py::test_what_cannot_be_served_is_refused_before_anything_starts", "harness/exports/_serving.py", "if not address.is_local and not address.api_key_env:", "if False:"),
    ("exports/test_serving.py::test_the_printed_command_and_compose_file_name_the_variable_of_the_key_alone", "harness/exports/_serving.py", '["--api-key-env", address.api_key_env]', '["--api-key-env", __import__("os").environ[address.api_key_env]]'),
    ("exports/test_serving.py::test_it_is_ready_with_the_stored_answers_and_ends_with_all_that_it_started[gguf-15]", "harness/models/llama_server.py", 'True, False, True, ""', 'True, False, True, "*"'),
    ("exports/test_serving.py::test_a_file_that_has_changed_is_not_served", "harness/exports/_serving.py", "export = verify_export(folder)", "export = read_export(folder)"),
))  # fmt: skip


def passes_without(guard: Guard, copy: Path) -> str:
    """Run a guard's test in a copy of the checkout without the guard; returns what it printed if it passed."""
    file = copy / guard.file
    whole = file.read_text("utf-8")
    file.write_text(whole.replace(guard.text, guard.without), "utf-8")
    one_core = {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    asked = [sys.executable, "-m", "pytest", f"tests/{guard.test}", "-x", "-m", "", "-p", "no:cacheprovider"]
    try:
        ended = subprocess.run(
            asked, cwd=copy, capture_output=True, text=True, timeout=BOUND_S, env=os.environ | one_core,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (BOUND_BYTES, BOUND_BYTES)),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return ""
    finally:
        file.write_text(whole, "utf-8")
    return "" if ended.returncode == 1 else f"{guard.test} without {guard.text!r}: {ended.stdout[-600:]}"


def copy_checkout(folder: Path) -> Path:
    """Copy the checkout without results; bytecode is left behind, as its times are those of other files."""

    def leave(parent: str, names: list[str]) -> list[str]:
        at_root = [name for name in names if name.startswith(".") or name in ("runs", "site")]
        return ["__pycache__", *(at_root if Path(parent) == ROOT else ())]

    return Path(shutil.copytree(ROOT, folder, ignore=leave, dirs_exist_ok=True))
