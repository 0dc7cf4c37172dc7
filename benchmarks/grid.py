"""What is measured at which scale. The paper-sized shapes are issue-sized: vocabularies of Qwen2, SmolLM2 and Llama 2."""

from benchmarks import head
from benchmarks.losses import Accuracy, Cell
from benchmarks.training import Training

SCALES = ("smoke", "cpu")
LOSSES, DTYPES = ("taid", "gjs", "rkl"), {"smoke": ("bf16",), "cpu": ("bf16", "fp32")}
CONTENDERS = ("official", "official_compiled", "trl", "torchtune", "eager", "compiled", "cpp", "cpp_inplace")
SHAPES = {"smoke": ((64, 4096),), "cpu": ((512, 151_936), (1024, 49_152), (2048, 32_000))}
REPETITIONS = {"smoke": 2, "cpu": 5}

# One side grows by factors of two, the other stays.
GROWING_VOCAB = {"smoke": (1024, 4096), "cpu": (8_000, 16_000, 32_000, 64_000, 128_000)}
GROWING_ROWS = {"smoke": (64, 256), "cpu": (64, 128, 256, 512, 1024)}
FIXED = {"smoke": (64, 1024), "cpu": (256, 32_000)}  # rows, vocabulary
SCALED = ("official", "plain", "eager", "cpp", "cpp_inplace")

# (rows, vocabulary, hidden sizes of student and teacher, number format)
HEADS = {
    "smoke": ((64, 4096, 16, 32, "fp32"),),
    "cpu": ((1024, 32_000, 64, 144, "fp32"), (1024, 32_000, 256, 512, "fp32"), (1024, 32_000, 64, 144, "bf16")),
}

# (batch, response, GKD's probability); the first is where the others depart from
COSTS = {
    "smoke": ((2, 8, 0.5),),
    "cpu": ((16, 32, 0.5), (16, 8, 0.5), (16, 64, 0.5), (4, 64, 0.5), (1, 64, 0.5), (1, 192, 0.5), (1, 192, 1.0)),
}
METHODS = ("kl", "taid", "distillm", "distillm_sampling", "gkd")


def cells(experiment: str, scale: str) -> list[Cell | Accuracy | head.Cell | Training]:
    """The cells of an experiment: each is measured by itself, its contenders side by side."""
    repetitions, (rows, vocab) = REPETITIONS[scale], FIXED[scale]
    if experiment == "losses":
        return [
            Cell(scale, loss, *shape, dtype, repetitions, CONTENDERS)
            for shape in SHAPES[scale] for dtype in DTYPES[scale] for loss in LOSSES
        ]
    if experiment == "accuracy":
        return [
            Accuracy(scale, loss, 32, vocab, dtype, gap) for loss in LOSSES for dtype in DTYPES[scale] for gap in (None, 0.05)
        ]
    if experiment == "scaling_vocab":
        return [Cell(scale, "taid", rows, width, "bf16", repetitions, SCALED) for width in GROWING_VOCAB[scale]]
    if experiment == "scaling_rows":
        return [Cell(scale, "taid", count, vocab, "bf16", repetitions, SCALED) for count in GROWING_ROWS[scale]]
    if experiment == "head":
        return [head.Cell(scale, loss, *shape, repetitions) for shape in HEADS[scale] for loss in ("taid", "gjs")]
    if experiment == "step":  # a Llama vocabulary, where the loss is much of the step
        steps, blocks = {"smoke": (1, 2), "cpu": (4, 16)}[scale]
        return [Training(scale, ("kl", "taid"), 32_000, 16, 48, 8, 0.5, steps, blocks)]
    if experiment == "cost":
        steps = {"smoke": 2, "cpu": 8}[scale]
        return [
            Training(scale, METHODS, 2048, 16, response, batch, probability, steps, repetitions)
            for batch, response, probability in COSTS[scale]
        ]
    raise ValueError(f"unknown experiment {experiment!r}")
