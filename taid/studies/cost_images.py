"""What the training of a classifier of images takes, as `taid.studies.cost` has it for language.

Of a student of P parameters and a teacher of Q, in fp32, and batches of n images [bytes]:

    weights, gradients  4 P each        optimizer  4 P (momentum)        teacher  4 Q        logits  12 n classes
    activations         what autograd keeps of a batch for the backward pass, counted on the meta device, and the
                        gradient of the largest of it

    FLOPs of an image   of the forward pass by PyTorch's counter: three times for the student, once for the teacher
    hours               at half of a GPU's peak in bf16, for fp32 convolutions run in TF32; these networks are small
                        and images are read by a CPU, so that it takes longer
"""

from functools import cache
from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from taid.studies.cost import H100, Bill, Gpu
from taid.studies.vision_models import classifier

TWO = 2  # images of the batch that is counted: norms want more than one


class Counted(NamedTuple):
    """Of a classifier."""

    parameters: int
    flops: float  # of an image, forward
    kept: float  # bytes of an image for the backward pass
    largest: float  # of these, of one tensor


@cache
def counted(name: str, classes: int, side: int, narrow: bool = False, channels: int = 3) -> Counted:
    """A classifier of `taid.studies.vision_models`, on the meta device: without its weights."""
    with torch.device("meta"):
        model = classifier(name, classes, channels, narrow).train()
        images = torch.empty(TWO, channels, side, side)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in own:
            kept[storage] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        model(pixel_values=images)
    sizes = [tensor.untyped_storage().nbytes() / TWO for tensor in kept.values()]
    parameters = sum(p.numel() for p in model.parameters())
    return Counted(parameters, counter.get_total_flops() / TWO, sum(sizes), max(sizes))


def bill(
    student: Counted, teacher: Counted | None, classes: int, steps: int, batch_size: int, gpu: Gpu = H100
) -> Bill:
    """What one student takes."""
    size, images = 4 * student.parameters, steps * batch_size
    parts: dict[str, float] = {
        "weights": size,
        "gradients": size,
        "optimizer": size,
        "teacher": 4 * teacher.parameters if teacher else 0,
        "activations": batch_size * (student.kept + student.largest),
        "logits": 12 * batch_size * classes,
    }
    flops = images * (3 * student.flops + (teacher.flops if teacher else 0))
    hours = flops / (gpu.peak / 2 * gpu.utilisation) / 3600
    known = teacher.parameters if teacher else 0
    return Bill(
        student.parameters, known, "images", images, parts | {"total": sum(parts.values())}, flops, hours
    )
