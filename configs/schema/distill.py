"""On-policy distillation from a teacher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """On-policy distillation: every sampled token is compared with a teacher's opinion of it."""

    # takes the reverse KL to a teacher off the tokens' advantages; without a reward function it is
    # all there is
    use_opd: bool = False
    opd_kl_coef: float = 1.0  # the weight of that KL
    # the teacher, a model as in --hf-checkpoint, or a torch_dist folder of the policy's shape,
    # served by one more engine
    opd_teacher_load: str | None = None
    # a teacher that an SGLang server serves already, e.g. http://127.0.0.1:30000
    opd_teacher_url: str | None = None
