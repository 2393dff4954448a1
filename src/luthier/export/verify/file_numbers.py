"""What a GGUF file says of its model in numbers, against the configuration of that model."""

from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np

from luthier.export.gguf.known import architecture


def wrong_numbers(file: gguf.GGUFReader, config: Any) -> Iterator[str]:
    """What the file says of the model that is not so, or not at all. config: transformers' own of the model."""
    known = architecture(config)
    for key, right in known.facts(config).items():
        field = file.fields.get(f"{known.name}.{key}")
        if field is None:
            yield f"the file does not say {known.name}.{key}, which is {right}"
            continue
        found = field.contents()
        same = np.allclose(found, right, rtol=1e-6) if isinstance(right, float) else found == right
        if not same:
            yield f"the file says that {known.name}.{key} is {found}, but the model has {right}"
    inside = {tensor.name: tensor for tensor in file.tensors}
    for name, values in known.more(config):
        if name not in inside:
            yield f"the file lacks {name}"
        elif not np.allclose(decoded(inside[name]).ravel(), values.float().numpy().ravel(), rtol=1e-5):
            yield f"{name} in the file is not what the model computes"


def decoded(tensor: Any) -> np.ndarray:
    """The values of a tensor of a file in fp32."""
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
