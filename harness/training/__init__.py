"""The shared training loops, driven by TRL; they name no method."""

# fmt: off
# isort: off
from harness.models.weight_files import adapter_digest, model_digest
from harness.training.context import (
    CHECKPOINTS, DIGESTS, FIT, TRACKED, FitContext, Reward, Weights, made_weights, map_tracked_folders,
    read_log_until,
)
from harness.training.heads import EMBEDDING, HEAD, encoder_of, open_embedding, open_head, open_scorer
from harness.training.heldout import HeldOutParams, add_curves, pairs_that_fit, trainer_options
from harness.training.job import (
    TrainingJob, clean_up, code_of, remove_all_but, run_job, threads_of, write_job,
)
from harness.training.lora import LoraParams, LowRankParams, lora_config, low_rank_method, unknown_names
from harness.training.parallel import rows_of_each, write_launch
from harness.training.policies import load_policy, make_policy_trainer, train_policy
from harness.training.reinforcement import is_metric_file, reward_problems, rewards_of
from harness.training.sft import SUPERVISED, SupervisedParams, fine_tune
from harness.training.tokenized import tokenize
from harness.training.trainer import MEMORY_KNOBS, is_of_bitsandbytes
# isort: on
# fmt: on
