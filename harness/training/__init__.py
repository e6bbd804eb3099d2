"""The shared training loops, driven by TRL; they name no method.

Invariant: training loads its own fresh base and leaves finished weights behind, with its checkpoints;
what is evaluated later is what was saved.
"""

from harness.models.weight_files import adapter_digest, model_digest
from harness.training.checkpoints import map_tracked_folders, read_log_until
from harness.training.context import (
    CHECKPOINTS,
    DIGESTS,
    TRACKED,
    FitContext,
    Reward,
    Weights,
    made_weights,
)
from harness.training.distillation import (
    DistilledParams,
    distill,
    teacher_of,
    teacher_problem,
)
from harness.training.heads import (
    EMBEDDING,
    HEAD,
    HeadParams,
    embedder,
    encoder_digest,
    encoder_of,
    encoder_problems,
    head_digest,
    label_texts,
    open_embedding,
    open_head,
    train_head,
)
from harness.training.heldout import HeldOutParams, add_curves, pairs_that_fit, trainer_options
from harness.training.job import (
    FIT,
    TrainingJob,
    clean_up,
    code_of,
    remove_all_but,
    run_job,
    threads_of,
    write_job,
)
from harness.training.live_trackers import (
    LIVE_ID,
    LiveRun,
    Seen,
    begin_wandb_run,
    clean_metric_name,
    find_mlflow_experiment,
    find_mlflow_run,
    make_live_id,
    open_mlflow,
    open_trackers,
    read_seen,
)
from harness.training.low_rank_adapters import (
    LoraParams,
    LowRankParams,
    adapter_parameters,
    load_policy,
    lora_config,
    low_rank_method,
    low_rank_problems,
    lower_rank,
    make_policy_trainer,
    train_policy,
    unknown_names,
)
from harness.training.parallel import is_first, make_once, rows_of_each, write_launch
from harness.training.peft_families import family_problems, list_own_values, peft_config
from harness.training.preference_optimization import PreferenceParams, preference
from harness.training.refused_families import exclude_unadapted, quantization_problems
from harness.training.reinforcement import (
    REWARDED,
    ReinforcedParams,
    is_metric_file,
    reward_problems,
    rewards_of,
    train_on_rewards,
)
from harness.training.reward_model import RewardParams, open_scorer, train_reward_model
from harness.training.sft import SUPERVISED, SupervisedParams, fine_tune, plan_tracked_steps
from harness.training.tokenized import tokenize
from harness.training.trainer import MEMORY_KNOBS, is_of_bitsandbytes
from harness.training.unpaired import UnpairedParams, preference_without_pairs, weigh_thumbs
