import torch

from depthdial.kernels.pack import packed
from depthdial.kernels.tensors import Int8


def test_everything_but_routers_is_packed_once_and_tied_weights_stay_tied(tiny_model, tensors_of, routed):
    model = routed(tensors_of(tiny_model(tie_word_embeddings=True)))
    small = packed(model)
    assert isinstance(small.embed, Int8) and small.head is small.embed
    layer = small.layers[3]
    weights = [getattr(layer, name).weight for name in ("q", "k", "v", "o", "gate", "up", "down")]
    assert layer.adapter is not None and all(isinstance(weight, Int8) for weight in (*weights, *layer.adapter))
    assert layer.branch is model.layers[3].branch
    assert packed(small).layers[3].q.weight is layer.q.weight  # packing again copies nothing


def test_an_untied_head_is_packed_by_itself(tiny_model, tensors_of):
    model = tensors_of(tiny_model(tie_word_embeddings=False))
    small = packed(model)
    assert isinstance(small.head, Int8) and small.head is not small.embed
    assert isinstance(model.head, torch.Tensor)


def test_visits_of_the_same_layer_go_on_sharing_it(tiny_model, tensors_of):
    model = tensors_of(tiny_model())
    small = packed(model._replace(layers=(*model.layers, model.layers[2])))
    assert small.layers[6].gate.weight is small.layers[2].gate.weight is not small.layers[3].gate.weight
