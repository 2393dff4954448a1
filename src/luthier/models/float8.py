"""Trained linear layers whose products are of 8-bit floats (kernels/float8_linear.py)."""

from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.kernels.float8_linear import float8_linear, why_not
from luthier.models.lora_targets import linear_names, output_embeddings
from luthier.models.swap import put


class Float8Linear(nn.Linear):
    """Takes the place of an `nn.Linear` and has its parameters, which stay as exact as they were."""

    @classmethod
    def around(cls, plain: nn.Linear) -> "Float8Linear":
        """The layer `plain`, multiplying 8-bit floats from now on."""
        made = cls(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        made.weight, made.bias = plain.weight, plain.bias
        return made.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        return float8_linear(input, self.weight, self.bias)


def multiply_float8(model: nn.Module) -> str:
    """Has linear layers multiply 8-bit floats from now on, in place; what a person should be told.

    The layer that makes logits stays, and so do layers whose shape the units do not take.

    Raises:
        ModelError: no layer can.
    """
    head = output_embeddings(model)
    plain = {name: model.get_submodule(name) for name in linear_names(model)}
    plain = {
        name: module for name, module in plain.items() if type(module) is nn.Linear and module is not head
    }
    fit = {n: m for n, m in plain.items() if why_not(m.out_features, m.in_features) is None}
    if not fit:
        raise ModelError(
            "model.products is fp8, but none of this model's linear layers has a number of inputs and outputs that is "
            "a multiple of 16. Leave it out."
        )
    for name, module in fit.items():
        put(model, name, Float8Linear.around(module))
    rest = len(plain) - len(fit)
    return f"products of {len(fit)} linear layers in 8-bit floats" + (f", {rest} as they are" if rest else "")
