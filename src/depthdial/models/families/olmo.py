"""OLMo 2 and 3: norms after attention and MLP, none before, and norms over all heads of q, and of k, at once."""

from depthdial.models.family import Family

OLMO2 = Family("olmo2", norms="once", exact_rope=True)
OLMO3 = Family("olmo3", norms="once", exact_rope=True, tiny={"sliding_window": 8})
