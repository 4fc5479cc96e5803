"""Training losses. They are always computed in fp32, also under autocast.

Shapes: B images, P patches, E width of the teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cross_entropy", "distillation_terms"]


def distillation_terms(
    global_token: Tensor,
    patches: Tensor,
    teacher_global: Tensor,
    teacher_patches: Tensor,
    patch_weight: float = 1.0,
    mse_weight: float = 1.0,
) -> dict[str, Tensor]:
    """The three terms of VECA's distillation loss (arXiv 2605.12491). The loss is their sum.

        global = 1 - cos(g, g_T)
        patch  = patch_weight * mean_p (1 - cos(f_p, f_Tp))
        mse    = patch_weight * mse_weight * mean (f - f_T) ** 2

    Args:
        global_token, patches: g (B, E) and f (B, P, E) of the student.
        teacher_global, teacher_patches: g_T and f_T of the teacher, in the same shapes.
        patch_weight: weight of the second and the third term.
        mse_weight: further weight of the third term.

    Returns:
        "global", "patch" and "mse", scalars in fp32.

    Raises:
        ValueError: student and teacher have different shapes.
    """
    for name, student, teacher in (
        ("global tokens", global_token, teacher_global),
        ("patches", patches, teacher_patches),
    ):
        if student.shape != teacher.shape:
            raise ValueError(
                f"expected {name} of student and teacher in one shape, got {tuple(student.shape)} and "
                f"{tuple(teacher.shape)}"
            )
    with torch.autocast(global_token.device.type, enabled=False):
        g, f, g_t, f_t = (x.float() for x in (global_token, patches, teacher_global, teacher_patches))
        return {
            "global": (1 - F.cosine_similarity(g, g_t, dim=-1)).mean(),
            "patch": patch_weight * (1 - F.cosine_similarity(f, f_t, dim=-1)).mean(),
            "mse": patch_weight * mse_weight * F.mse_loss(f, f_t),
        }


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over all entries with a label.

    Args:
        logits: logits (..., classes).
        labels: integer labels (...); entries with -100 are left out.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten().long(), ignore_index=-100)
