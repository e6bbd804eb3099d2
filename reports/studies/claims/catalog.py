"""The claims: those that are measured here, cheapest first, and the others, with what they would need."""

from reports.studies.claims import preferences, sizes, spectrum, steps
from reports.studies.claims.claim import Claim, OpenClaim
from reports.studies.claims.fine_tunes import N_GOOD, Pair, claim_of, curve_of

_HU = "Hu et al. 2021, arXiv:2106.09685"
_DETTMERS = "Dettmers et al. 2023, arXiv:2305.14314"
_AS_GOOD = -0.05  # five points worse counts as equal
_DRAWN = (
    "a GPU, or on one thread of a CPU two calls, each ended after an hour: answers are drawn while training, 27 minutes "
    "a seed beside other work; one training of each is in [rewards](rlhf.md)"
)

CLAIMS = (
    Claim(
        "share-of-parameters",
        "LoRA trains 10,000 times fewer parameters than GPT-3 has (rank 4, queries and values)",
        f"{_HU}, abstract and section 4.2",
        0.1,
        sizes.share_of_parameters,
    ),
    Claim(
        "size-of-checkpoint",
        "a checkpoint of GPT-3 shrinks from 350 GB to 35 MB",
        f"{_HU}, section 4.2",
        0.2,
        sizes.size_of_checkpoint,
    ),
    Claim(
        "memory-of-qlora",
        "a model of 65 B needs more than 780 GB to be trained whole, and less than 48 GB by QLoRA",
        f"{_DETTMERS}, abstract",
        0.1,
        sizes.memory_of_qlora,
    ),
    Claim(
        "bits-of-nf4",
        "double quantisation spares 0.373 bits a parameter",
        f"{_DETTMERS}, section 3",
        0.5,
        sizes.bits_of_nf4,
    ),
    Claim(
        "latency-after-merging",
        "a merged adapter adds no latency",
        f"{_HU}, section 4.1",
        1.5,
        steps.latency_after_merging,
    ),
    Claim(
        "memory-of-training",
        "with Adam, LoRA needs up to two thirds less memory than training everything",
        f"{_HU}, section 4.2",
        2.0,
        steps.memory_of_training,
    ),
    Claim(
        "time-of-training",
        "LoRA trains a quarter faster than training everything",
        f"{_HU}, section 4.2, on GPT-3",
        3.0,
        steps.time_of_training,
    ),
    Claim(
        "rank-8",
        "a small rank is enough: rank 8 gains as much as rank 64",
        f"{_HU}, section 7.2",
        8.0,
        claim_of(Pair("rank-8", "rank-64", "target", _AS_GOOD)),
    ),
    Claim(
        "neftune",
        "noise on the embeddings while training makes answers to instructions better; here on the target",
        "Jain et al. 2023, arXiv:2310.05914",
        8.0,
        claim_of(Pair("neftune", "plain", "target", 0.0)),
    ),
    Claim(
        "replay",
        "a tenth of general rows keeps more of what the base could do, at an equal gain",
        "Ibrahim et al. 2024, arXiv:2403.08763; Bethune et al. 2025, arXiv:2502.06042",
        18.0,
        claim_of(Pair("replay", "plain", "capability", 0.0)),
    ),
    Claim(
        "kl",
        "KL to the base on general prompts keeps more of what the base could do, at an equal gain",
        "Li and Hoiem 2017, arXiv:1606.09282",
        18.0,
        claim_of(Pair("kl", "plain", "capability", 0.0)),
    ),
    Claim(
        "ewc",
        "elastic weight consolidation keeps more of what the base could do, at an equal gain",
        "Kirkpatrick et al. 2017, arXiv:1612.00796",
        18.0,
        claim_of(Pair("ewc", "plain", "capability", 0.0)),
    ),
    Claim(
        "sam",
        "a flat minimum, found by SAM, forgets less, at an equal gain",
        "Li et al. 2024, arXiv:2406.04836; SAM is Foret et al. 2021, arXiv:2010.01412",
        18.0,
        claim_of(Pair("sam", "plain", "capability", 0.0)),
    ),
    Claim(
        "half-fine-tuning",
        "training half of the matrices, others in each round, forgets less and gains as much",
        "Hui et al. 2024, arXiv:2404.18466",
        18.0,
        claim_of(Pair("half", "all", "capability", 0.0, "320 rows, rate 0.0001")),
    ),
    Claim(
        "learning-rates",
        "learning rates of 2e-5 to 5e-5 work across tasks where all of a small model is trained",
        "Devlin et al. 2019, arXiv:1810.04805, appendix A.3, on BERT",
        15.0,
        curve_of("all-1e-5", "all-2e-5", "all-5e-5"),
    ),
    Claim(
        "few-good-rows",
        "few rows that were chosen with care come as far as many noisy ones",
        "Zhou et al. 2023, arXiv:2305.11206, with 1,000 rows",
        8.0,
        claim_of(
            Pair(
                "good",
                "noisy",
                "target",
                _AS_GOOD,
                f"{N_GOOD} rows three times, and 320 once of which every other has another row's answer, rate 0.001",
            )
        ),
    ),
    Claim(
        "dpo-against-rloo",
        "DPO comes as far as a reward model with reinforcement learning, at less compute",
        "Rafailov et al. 2023, arXiv:2305.18290, against PPO",
        15.0,
        preferences.dpo_against_rloo,
        _DRAWN,
    ),
    Claim(
        "rloo-against-dpo",
        "RLOO comes farther than DPO",
        "Ahmadian et al. 2024, arXiv:2402.14740",
        1.0,
        preferences.rloo_against_dpo,
        _DRAWN,
    ),
    Claim(
        "spectrum-against-qlora",
        "Spectrum gains more than QLoRA at a similar memory",
        "Hartford et al. 2024, arXiv:2406.06623",
        9.0,
        spectrum.spectrum_against_qlora,
        "a GPU for the memory: without one NF4 is computed in 16 bits and spares none, and the target alone is compared",
    ),
)

OPEN = (
    OpenClaim(
        "small-tuned",
        "a small model that is tuned beats a larger one that is prompted",
        "Bucher and Martini 2024, arXiv:2406.08660",
        "a larger model, which is not embedded, and a GPU",
        1.0,
    ),
)
