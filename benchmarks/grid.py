"""What is measured, at which scale: each cell by itself, its contenders side by side."""

from benchmarks import head
from benchmarks.losses import FEW, Accuracy, Cell
from benchmarks.training import Training

SCALES = ("smoke", "cpu", "gpu")
LOSSES = ("taid", "gjs", "rkl")
CONTENDERS = (
    "official", "official_compiled", "trl", "torchtune", "eager", "compiled", "cpp", "cpp_inplace", "triton",
    "triton_inplace",
)  # fmt: skip
DTYPES = {"smoke": ("bf16",), "cpu": ("bf16", "fp32"), "gpu": ("bf16", "fp32")}
REPETITIONS = {"smoke": 2, "cpu": 5, "gpu": 11}
# rows and vocabulary: those of Qwen2, SmolLM2, Llama 2. JSD and reverse KL meet fp32 at the last, for time's sake.
SHAPES = {
    "smoke": ((64, 4096),),
    "cpu": ((512, 151_936), (1024, 49_152), (2048, 32_000)),
    "gpu": ((4096, 151_936), (8192, 32_000)),
}

# one side grows, the other stays
GROWING_VOCAB = {
    "smoke": (1024, 4096),
    "cpu": (8_000, 16_000, 32_000, 64_000, 128_000),
    "gpu": (8_000, 16_000, 32_000, 64_000, 128_000, 256_000),
}
GROWING_ROWS = {
    "smoke": (64, 256), "cpu": (64, 128, 256, 512, 1024), "gpu": (64, 256, 1024, 4096, 16_384),
}  # fmt: skip
FIXED = {"smoke": (64, 1024), "cpu": (256, 32_000), "gpu": (4096, 32_000)}  # rows, vocabulary
SCALED = ("official", "plain", "eager", "cpp", "cpp_inplace", "triton", "triton_inplace")

# loss, rows, vocabulary, hidden sizes of student and teacher, number format
HEADS = {
    "smoke": (("taid", 64, 4096, 16, 32, "fp32"), ("gjs", 64, 4096, 16, 32, "fp32")),
    "cpu": (
        ("taid", 1024, 32_000, 64, 144, "fp32"), ("gjs", 1024, 32_000, 64, 144, "fp32"),
        ("taid", 1024, 32_000, 256, 512, "fp32"), ("taid", 1024, 32_000, 64, 144, "bf16"),
    ),
    # TinyLlama below Llama 2, and Qwen2 0.5B below 7B
    "gpu": (
        ("taid", 8192, 32_000, 2048, 4096, "bf16"), ("gjs", 8192, 32_000, 2048, 4096, "bf16"),
        ("taid", 4096, 151_936, 896, 3584, "bf16"), ("gjs", 4096, 151_936, 896, 3584, "bf16"),
    ),
}  # fmt: skip

# batch, tokens of a response, GKD's probability of sampling
COSTS = {
    "smoke": ((2, 8, 0.5),),
    "cpu": (
        (16, 8, 0.5), (16, 32, 0.5), (16, 64, 0.5), (4, 64, 0.5), (1, 64, 0.5), (1, 192, 0.5), (1, 192, 1.0),
    ),
    "gpu": ((64, 32, 0.5), (8, 128, 0.5), (8, 256, 0.5)),
}  # fmt: skip
METHODS = ("kl", "taid", "distillm", "distillm_sampling", "gkd")


def cells(experiment: str, scale: str) -> list[Cell | Accuracy | head.Cell | Training]:
    """The cells of an experiment. Raises KeyError for an unknown one."""
    # compiling anew for every cell is most of a GPU's minutes, and nobody's default there
    contenders = tuple(name for name in CONTENDERS if (scale, name) != ("gpu", "compiled"))
    repetitions, (rows, vocab), dtypes = REPETITIONS[scale], FIXED[scale], DTYPES[scale]
    steps, blocks = {"smoke": (1, 2), "cpu": (4, 16), "gpu": (4, 8)}[scale]
    cost_steps, cost_blocks, cost_vocab = {"smoke": (2, 2, 2048), "cpu": (8, 5, 2048), "gpu": (4, 3, 32_000)}[
        scale
    ]
    every: dict[str, list] = {
        "losses": [
            Cell(scale, loss, *shape, dtype, repetitions, contenders)
            for shape in SHAPES[scale] for dtype in dtypes for loss in LOSSES
            if loss == "taid" or dtype == "bf16" or shape == SHAPES[scale][-1]
        ],
        "accuracy": [
            Accuracy(scale, loss, 32, vocab, dtype, gap)
            for loss in LOSSES for dtype in dtypes for gap in (None, 0.05)
            if scale != "gpu" or dtype == "bf16"
        ],
        "scaling_vocab": [
            Cell(scale, "taid", rows, size, "bf16", FEW, SCALED) for size in GROWING_VOCAB[scale]
        ],
        "scaling_rows": [
            Cell(scale, "taid", size, vocab, "bf16", FEW, SCALED) for size in GROWING_ROWS[scale]
        ],
        "head": [head.Cell(scale, *shape, repetitions) for shape in HEADS[scale]],
        # the vocabulary of Llama 2, where the loss is much of the step
        "step": [Training(scale, ("kl", "taid"), 32_000, 16, 48, 8, 0.5, steps, blocks)],
        "cost": [
            Training(scale, METHODS, cost_vocab, 16, response, batch, probability, cost_steps, cost_blocks)
            for batch, response, probability in COSTS[scale]
        ],
    }  # fmt: skip
    return every[experiment]
