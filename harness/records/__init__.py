"""Records that runs write: examples, rows of samples, trainings, runs and measurements."""

# fmt: off
# isort: off
from harness.records.phrases import (
    COMMAS, EDGES, LANGUAGES, LIST_MARK, MARKS, OPENING_CHARS, count_negations, is_refusal, reports_error,
)
from harness.records.passages import Mark, context_of, map_passage_marks, question, recall, with_context
from harness.records.repeated_measurements import (
    Anchor, AnchorCheck, AnswerLabel, Control, ControlBlock, Grade, LabelSet, Noise, Rating, TaskNoise,
)
from harness.records.run_records import (
    FEWER, PARITY, SERVING, TRAINING, Curve, Figure, MatrixScan, MetricRange, Run, SamplingRecord,
    TokenCounts, TrackedPoint, TrainingRecord, Trial, ValidationReward, read_training_record, run_record,
)
from harness.records.sample_results import (
    BLOCK, FEEDBACK_ORIGIN, Document, Encoded, Example, FeedbackRow, Likelihood, Limits, Message, Origin,
    Output, PromptText, RowsIdentity, Sample, SampleResult, Status, has_closed_labels, turns_as_text,
)
from harness.records.serialization import (
    LONGEST_NAME, StoredName, canonical_json, checksum, digest, drop_defaults, is_bare_name, load,
    load_files, many_rows, parse_json, read_object, reader,
)
from harness.records.texts import (
    WORD, compose_letters, count_letters, fold_text, is_unspaced, list_labels, list_words, match_label,
    normalize, pieces, split_into_grams, split_into_letters,
)
# isort: on
# fmt: on
