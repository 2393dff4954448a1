"""A second model on the same weights: modules of its own, so that it can get another adapter, but no tensor twice."""

import copy

from transformers import PreTrainedModel


def another_tree(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules whose parameters and buffers are the same tensors.

    Adapters are put on by exchanging modules and never write into the base's weights, so neither sees the other's.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, dict(shared))
