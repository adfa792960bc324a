"""EXAONE 4: norms after attention and MLP, none before; of a model with windows only layers that slide have a rope."""

from depthdial.models.family import Family

EXAONE4 = Family(
    "exaone4",
    turns=lambda config, index: config.sliding_window is None or config.layer_types[index] == "sliding_attention",
    tiny={"sliding_window": 8, "sliding_window_pattern": 3},
)
