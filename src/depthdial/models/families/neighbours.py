"""Families whose rope turns neighbouring numbers of a head: ERNIE 4.5 (dense) in fp32, Helium, and GLM a part of each,
its MLP's maps fused."""

from depthdial.models.family import Family

ERNIE4_5 = Family("ernie4_5", neighbours=True, exact_rope=True, tiny={"use_bias": True})
HELIUM = Family("helium", neighbours=True, norms="once")
GLM = Family(
    "glm",
    neighbours=True,
    tiny={"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4}},
)
