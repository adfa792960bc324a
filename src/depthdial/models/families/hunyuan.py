"""HunYuan (dense): a Llama layer with norms on q and k, head by head, after the rope."""

from depthdial.models.family import Family

HUNYUAN = Family("hunyuan_v1_dense", norms_turned=True)
