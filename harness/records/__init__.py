"""Records that runs write: examples, rows of samples, trainings, runs and measurements."""

from harness.records.equal_texts import compose_letters, fold_text, list_labels, match_label, normalize
from harness.records.figures import SERVING, TRAINING, Figure
from harness.records.grades import Anchor, AnchorCheck, Grade
from harness.records.repeated_measurements import (
    AnswerLabel,
    Control,
    ControlBlock,
    LabelSet,
    Noise,
    Rating,
    TaskNoise,
)
from harness.records.run_records import FEWER, MetricRange, Run, SamplingRecord, run_record
from harness.records.sample_results import (
    BLOCK,
    Document,
    Encoded,
    Example,
    Likelihood,
    Limits,
    Message,
    Origin,
    Output,
    PromptText,
    RowsIdentity,
    Sample,
    SampleResult,
    Status,
    has_closed_labels,
    turns_as_text,
)
from harness.records.serialization import (
    LONGEST_NAME,
    StoredName,
    canonical_json,
    checksum,
    digest,
    drop_defaults,
    is_bare_name,
    load,
    load_files,
    many_rows,
    parse_json,
    read_object,
    reader,
)
from harness.records.training_records import (
    Curve,
    MatrixScan,
    TrackedPoint,
    TrainingRecord,
    Trial,
    read_training_record,
)
from harness.records.words import WORD, is_unspaced, list_words, pieces, split_into_grams, split_into_letters
