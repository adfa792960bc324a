"""ERNIE 4.5 (dense): a Llama layer whose rope turns neighbours, in fp32, and maybe biases everywhere."""

from depthdial.models.family import Family

ERNIE4_5 = Family("ernie4_5", neighbours=True, exact_rope=True, tiny={"use_bias": True})
