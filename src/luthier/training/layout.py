"""How the rows of a run are laid out, by what they cost its model."""

from luthier.config.tree import Config
from luthier.data.balance import CostModel
from luthier.data.prompts import Layout, lay_out
from luthier.models.policy import Policy
from luthier.models.quantised.load import num_weights
from luthier.training.rows import Data


def layout_of(config: Config, data: Data, policy: Policy, micro_tokens: int) -> Layout:
    """Whether answers share their prompt, and rows what they begin with. Rows of a stream stay as they are encoded."""
    sharing = config.data.share_prefixes and policy.can_share
    if data.stream is not None:
        return Layout(data.train, sharing)
    hinder = "" if config.data.share_prefixes else "data.share_prefixes is false"
    if policy.layout != "packed":
        hinder = f"the layout {policy.layout} computes each on its own"
    if config.train.neftune_noise_alpha:
        hinder = "train.neftune_noise_alpha draws noise for each of them"
    cost = cost_of(policy, adapters=config.has_adapter)
    return lay_out(data.train, cost, micro_tokens, sharing=sharing, hinder=hinder)


def cost_of(policy: Policy, *, adapters: bool) -> CostModel:
    """What rows cost, by the shape of the model."""
    shape = policy.model.config.get_text_config()
    heads = getattr(shape, "num_attention_heads", 0) or 0
    size = getattr(shape, "head_dim", None) or (getattr(shape, "hidden_size", 0) // max(1, heads))
    layers = getattr(shape, "num_hidden_layers", 0) or 0
    return CostModel.of(
        layers=layers, attention_size=heads * size, weights=num_weights(policy), adapters=adapters
    )
