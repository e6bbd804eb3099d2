"""What no test of `make gpu` runs, because it takes several GPUs, other packages or what is not offered, by name.

Invariant: each line names the files of tests that hold on CPUs what can be held there, and none where nothing can.
"""

from bench_page import Table

_COLUMNS = ("what", "state", "what is tested on CPUs instead")
_LINES = (
    (
        "vLLM as a server (`engine: vllm`)",
        "offered: started, given adapters and ended by the harness; never run on a GPU, and never with vLLM's own program",
        (
            "start, failures, kills and a whole comparison with a program that takes the same arguments and speaks the same "
            "protocol (`tests/test_managed_vllm.py`); by hand vLLM's own server on a CPU, asked as an endpoint "
            "(`tests/slow/test_vllm_server.py`)"
        ),
    ),
    (
        "likelihoods by transformers and answers by vLLM in one run",
        "not offered: one engine answers everything of an experiment",
        "none",
    ),
    (
        "what a pass costs, measured once for each card; batches bounded by the keys that fit",
        "offered: each card's first base is measured and its batches laid out by that; an H200 was, by the study of fronts",
        (
            "the arithmetic, what is kept and read again, and batches by other costs, which answer alike: all with a CPU that plays a card "
            "(`tests/test_pass_costs.py`)"
        ),
    ),
    (
        "a process of its own for each training on one GPU (`training: {process: auto}`)",
        "the default there; an H200 ran one for LoRA, QLoRA and DPO in the quickstart (`reports/full_h200.md`), and for Spectrum, by `make claims`",
        "the same process on a CPU, where it is asked for, and which device has it unasked (`tests/test_training.py`)",
    ),
    (
        "the next block's prompts, tokenised in a thread while a GPU computes a block",
        "the default there; an H200 ran so, by the study of fronts",
        "the same blocks and ids with that thread and without (`tests/test_tokenization.py`)",
    ),
    (
        "gradient checkpointing where free memory would not be enough",
        "the default on a GPU; never run on one",
        "when it is chosen, and that it changes no loss (`tests/test_training.py`, `tests/test_training_knobs.py`)",
    ),
    (
        "the scoring engine, which a two-layer copy of the configuration tells",
        "offered; where a card's costs are not known yet the base is loaded all the same, to measure them",
        (
            "copies of each family and of published sizes against the base itself, masks that are ignored and windows that are a token "
            "off (`tests/test_model_families.py`)"
        ),
    ),
    (
        "adapters merged into weights of 16 bits (`serve_merged: true`)",
        "offered; never run on a GPU",
        "the merged weights against PEFT's, in bf16 on a CPU, and by how much answers then differ (`tests/test_serve_merged.py`)",
    ),
    (
        "the keys of what prompts begin with, read by all rows of a pass without copies (FlashAttention merged by its log-sum-exp, FlexAttention)",
        "not offered: they are computed once, and each row of a pass has a copy of them while it runs, which its batches leave room for",
        "that what is shared is read once and alike, and batches bounded by their keys (`tests/test_prefix_cache.py`, `tests/test_pass_costs.py`)",
    ),
    (
        "continuous batching (transformers' `generate_batch`), CUDA graphs, `torch.compile`",
        "not offered: answers come in batches, a token of each at a time",
        (
            "that loop against transformers' own greedy answers, for each family (`tests/test_generation.py`, "
            "`tests/test_model_families.py`)"
        ),
    ),
    (
        "several GPUs for one training, data parallel (`training: {accelerate: …}`)",
        "offered; never run on GPUs (the part `sharing` does where there are two)",
        "two processes against one, by each method, killed and resumed (`tests/test_shared_training.py`)",
    ),
    (
        "FSDP2 for one training (`distributed_type: FSDP`)",
        (
            "offered on GPUs alone, where accelerate shards; never run on one (the part `sharing` does where there are two): bf16 and "
            "fp16, NCCL, a base larger than a GPU, in 16 bits and in NF4"
        ),
        (
            "that accelerate starts it from the configuration; two processes on CPUs that accelerate takes for GPUs, in fp32 over gloo, "
            "make the weights of one, also on NF4 stored as floats; what is refused, and the estimate (`tests/test_shared_training.py`)"
        ),
    ),
    (
        "DeepSpeed's ZeRO 2 and 3 for one training (`distributed_type: DEEPSPEED`)",
        "offered on GPUs alone; never run on one: bf16 and fp16, NCCL, a base larger than a GPU",
        (
            "that accelerate starts it from the configuration; what is refused, and the estimate; by hand, as CI has no DeepSpeed, two "
            "processes on CPUs that accelerate takes for GPUs, in fp32, make the adapter of one (`tests/test_shared_training.py`)"
        ),
    ),
    (
        "workers with a GPU each (`--executor local`, `ray`, `slurm`)",
        "offered; two local workers shared one GPU, several GPUs were never used",
        (
            "rows against one process, with workers, nodes and the command killed (`tests/slow/test_workers.py`); which GPU each local "
            "worker is told to take (`tests/test_executors.py`)"
        ),
    ),
    (
        "a base spread over several GPUs, then main memory and disk",
        "offered; layers on several GPUs were never run",
        (
            "the plan from sizes alone, and a base partly on the disk against the same in memory, fp32 to 1e-4 nats "
            "(`tests/test_placement.py`)"
        ),
    ),
    (
        "a base that fits no GPU in 16 bits and is measured quantised",
        "offered; never run",
        "which bases these are, from sizes alone (`tests/test_placement.py`)",
    ),
    (
        "the start of an adapter by LoftQ",
        "offered on GPUs alone",
        "that a CPU refuses it (`tests/test_peft.py`)",
    ),
    (
        "bases published in AWQ, GPTQ, MXFP4 or HQQ",
        "loaded by transformers, whose kernels for them need a GPU; never run",
        (
            "their parameters, bits and bytes, read from the headers of the files, packed and unpacked "
            "(`tests/test_hub.py`, `tests/test_quantized_families.py`)"
        ),
    ),
    (
        "full fine-tuning in bf16 weights (`dtype: bfloat16`)",
        "offered; never run on a GPU",
        "the types of weights and of what each optimiser remembers, and steps that learn (`tests/test_training_knobs.py`)",
    ),
    (
        "fp16 with a gradient scaler, on a card without bf16 (T4)",
        "chosen on such a card; never run",
        (
            "scores, answers and adapters (LoRA, DPO) computed in fp16 on the CPU, and a comparison in it; torch's own scaler and mixed "
            "precision given to accelerate there, which has them on GPUs alone: steps that overflow change nothing and are counted "
            "(`tests/test_cpu_kernels.py`)"
        ),
    ),
    (
        "a training that is paused at tracked points, by which searches are pruned",
        "offered; never run on a GPU",
        "the weights against those of a training without pauses (`tests/test_pruned_search.py`)",
    ),
    (
        "axolotl, LLaMA-Factory, Unsloth (`theirs: axolotl`, …)",
        "recipes that ship, written from documentation; none of the three was ever installed or run",
        (
            "that the recipes are found and filled (`tests/test_command.py`); the same way with TRL's own command line, which is "
            "run (`tests/slow/test_trl_command.py`)"
        ),
    ),
    (
        "times, memory and prices that `harness doctor --base ID --gpu 24GB` estimates",
        "offered; held to no card",
        (
            "the arithmetic, also of the textbook's 7B (`tests/test_base_fit.py`), and sizes of published models "
            "(`tests/test_quantized_families.py`)"
        ),
    ),
)

NEVER_RUN = Table("No test runs on a GPU, of what the harness offers or leaves out:", _COLUMNS, _LINES)
