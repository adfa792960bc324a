"""SmolLM3: a Llama layer, every few of which have no rope."""

from depthdial.models.family import Family

SMOLLM3 = Family(
    "smollm3",
    turns=lambda config, index: bool(config.no_rope_layers[index]),
    tiny={"no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 8},
)
