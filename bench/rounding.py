"""What llama.cpp's rounding of inputs does to the answers of a GGUF file, and that it does nothing else to them.

    python -m bench.rounding RUN FILE.gguf [--prompts 6] [--places 24] [--answer 8] [--out FILE.json]

Needs luthier[llama]. The same places are asked of the trained model, of the decoded file, of the decoded file with the
inputs of its linear layers rounded as llama.cpp rounds them, of that once more with every embedding off by about one
part in a million, of llama.cpp, and of llama.cpp with its products in fp32. Told is the mean KL of each from each.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor, nn

from luthier.config.load import load_config
from luthier.export.gguf.known import architecture
from luthier.export.gguf.llama import library
from luthier.export.verify import compare
from luthier.export.verify.compare import Said, apart
from luthier.export.verify.engine import Engine
from luthier.export.verify.engines._torch import TorchModel
from luthier.export.verify.engines.gguf_reader import InReader
from luthier.export.verify.engines.llama_cpp import InLlamaCpp
from luthier.export.verify.engines.llama_plain import InPlainLlamaCpp
from luthier.export.verify.rounded_inputs import ROUNDED
from luthier.export.verify.verdict import trained_by
from luthier.models.inference import load_for_inference
from luthier.runs.folder import RunFolder
from luthier.training.own_prompts import own_prompts

OFF = 1e-6
"""By which embeddings are off, as a part of their size: the standard deviation."""


def main(arguments: list[str]) -> int:
    """Asks, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--places", type=int, default=24)
    parser.add_argument("--answer", type=int, default=8)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    folder = RunFolder.open(given.run)
    loaded = load_for_inference(str(folder.path), device="cpu", dtype="float32")
    asked = own_prompts(load_config(folder.config), loaded.tokenizer, loaded.template, given.prompts)
    with TorchModel(loaded.model, loaded.tokenizer) as model:
        told = trained_by(model, loaded.model.config, asked, given.answer, loaded.eos_token_ids)
    config, room = told.config, told.longest
    del loaded, model
    said = [shortened(one, given.places) for one in told.said]
    file = given.file
    plain = InPlainLlamaCpp(file, room, config)
    engines: dict[str, Callable[[], Engine]] = {
        "decoded": lambda: InReader(file, config),
        "decoded, inputs rounded": lambda: Rounding(file, config, 0.0),
        "the same, embeddings off by 1e-6": lambda: Rounding(file, config, OFF),
        "llama.cpp": lambda: InLlamaCpp(file, room, config),
        "llama.cpp, products in fp32": lambda: plain,
    }
    answers = {"trained": [one.logits_TV for one in said]}
    for name, load in engines.items():
        with load() as engine:
            answers[name] = [engine.logits(one.fed, len(one.logits_TV)) for one in said]
    text = json.dumps({**about(given, said, asked.source), **figures(said, answers, plain)}, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 0


def about(given: Any, said: Sequence[Said], source: str) -> dict[str, Any]:
    """What was measured with what."""
    return {
        "what": f"{given.file.name}: mean KL in nats of each way to compute it from each other",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU",
        "versions": {"torch": torch.__version__, "llama-cpp-python": library().__version__},
        "prompts": f"{len(said)} from {source}; {sum(len(one.logits_TV) for one in said)} places",
    }


def figures(said: Sequence[Said], answers: dict[str, list[Tensor]], plain: InPlainLlamaCpp) -> dict[str, Any]:
    """KL(row ‖ column), and how much of llama.cpp's products the rounding of their inputs is."""
    rows = {}
    for name, own in answers.items():
        as_said = [replace(one, logits_TV=logits) for one, logits in zip(said, own, strict=True)]
        rows[name] = {
            other: apart(as_said, theirs).mean_kl for other, theirs in answers.items() if other != name
        }
    share, weight = plain.explained()
    products = {"weights": len(plain.products), "least": share, "of": weight, "unmet": plain.unmet()}
    return {"kl": rows, "products_explained": products}


def shortened(said: Said, places: int) -> Said:
    """The same with fewer of the prompt's places: all of the answer, and so many before it."""
    kept = min(len(said.logits_TV), places + len(said.answer) - 1)
    assert places <= compare.PLACES
    return replace(said, logits_TV=said.logits_TV[-kept:].clone())


class Rounding(InReader):
    """A decoded file whose linear layers round their inputs as llama.cpp does."""

    def __init__(self, file: Path, config: Any, off: float):
        super().__init__(file, config)
        kinds = {one.name: one.tensor_type for one in gguf.GGUFReader(file).tensors}
        known = architecture(config)
        for path, module in self._model.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            shape = torch.empty(module.weight.shape, device="meta")
            ((name, _),) = known.changed(f"{path}.weight", shape)
            kind = kinds.get(known.name_of(name), kinds["token_embd.weight"])  # a tied head has no tensor
            if kind in ROUNDED:
                module.register_forward_pre_hook(lambda _, x, rounded=ROUNDED[kind]: (rounded(x[0]),))
        noise = torch.Generator().manual_seed(0)
        if off:
            self._model.get_input_embeddings().register_forward_hook(
                lambda _, ids, x: x * (1 + off * torch.randn(x.shape, generator=noise))
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
