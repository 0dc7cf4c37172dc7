"""Multi-level logit distillation (MLKD): a loss of a whole batch of predictions, for classifiers of images."""

from collections.abc import Sequence

from torch import Tensor

from taid import losses
from taid.checks import require_logits, require_temperature

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)  # the authors' code


def mlkd(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: Sequence[float] = TEMPERATURES
) -> Tensor:
    """Multi-level logit distillation (Jin, Wang, Lin, CVPR 2023) of n predictions [n, V] at once, [n]. Its mean is

        Σ_τ  τ²/n Σ_i KL(p_i ‖ q_i)  +  1/n ‖P Pᵀ − Q Qᵀ‖²  +  1/V ‖Pᵀ P − Qᵀ Q‖²,

    where P and Q [n, V] hold p_i = softmax(z_i / τ) and q_i = softmax(s_i / τ): the levels of the instance, of the
    batch and of the classes, summed over `temperatures`. Element i is the mean's share of prediction i; that of the
    classes is the same for all. So the value depends on what else is in a batch: micro-batches are batches here.

    The authors' code besides takes a second, strongly augmented view of each image, and the weak view's terms for
    the less confident half of a batch alone; here each image is seen once. Raises ValueError for logits that are not
    [n, V], and for temperatures that are none, or no numbers.
    """
    require_logits(student_logits, teacher_logits)
    if student_logits.dim() != 2:
        raise ValueError(
            f"mlkd compares the predictions of a batch: pass logits [n, V], got {list(student_logits.shape)}"
        )
    if isinstance(temperatures, str) or not hasattr(temperatures, "__len__"):
        raise ValueError(f"mlkd takes several temperatures, such as (2.0, 4.0), got {temperatures!r}")
    if not len(temperatures):
        raise ValueError("mlkd needs at least one temperature")
    found = student_logits.new_zeros(())
    for temperature in temperatures:
        require_temperature(temperature)
        found = found + _levels(student_logits, teacher_logits.detach(), temperature)
    return found


def _levels(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """[n] at one temperature. With D = P − Q the classes' level is

        ‖Pᵀ D + Dᵀ Q‖² = Σ (D Dᵀ)(P Pᵀ + Q Qᵀ) + 2 Σ (D Pᵀ)(D Qᵀ)ᵀ,  entry by entry:

    n × n numbers however large V is, and small ones where P is close to Q.
    """
    q = losses._soften(student_logits, temperature).softmax(-1)
    p = losses._soften(teacher_logits, temperature).softmax(-1).to(q.dtype)
    pp, qq, d = p @ p.T, q @ q.T, p - q
    classes = ((d @ d.T) * (pp + qq)).sum() + 2 * ((d @ p.T) * (d @ q.T).T).sum()
    instance = losses.ctkd(student_logits, teacher_logits, temperature)
    return instance + (pp - qq).square().sum(-1) + classes / q.shape[-1]
