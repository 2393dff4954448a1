"""A model that was trained to turn texts into vectors: `method: embed`, read back from its run.

Shape suffixes: Q texts, D hidden size.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from luthier.config.load import load_config
from luthier.data.batch import Example, Segment, collate
from luthier.errors import ModelError
from luthier.models.adapter_files import attach_adapter
from luthier.models.base import folder_of
from luthier.models.device import pick_device, pick_dtype
from luthier.models.head_files import read_head
from luthier.models.head_policy import HeadPolicy
from luthier.models.load import load_tokenizer
from luthier.models.policy import Policy
from luthier.models.quantised.chosen import chosen
from luthier.models.tripwire import choose_policy
from luthier.models.value_head import load_with_head

TOKENS_AT_ONCE = 8192
"""Of texts that go through the model together; a longer one goes alone."""


@dataclass(frozen=True)
class Embedder:
    """A model with all that is needed to ask it for vectors."""

    policy: Policy
    tokenizer: PreTrainedTokenizerFast
    context: int | None
    """Most tokens of a text."""

    def ids(self, text: str) -> list[int]:
        """A text as it was seen in training."""
        return self.tokenizer(text).input_ids

    def vectors(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The vector of each text, given as ids: [Q, D] of length 1, in fp32 on the CPU."""
        found = [self._some(texts[some]) for some in _portions([len(text) for text in texts])]
        return F.normalize(torch.cat(found), dim=-1)

    def _some(self, texts: Sequence[Sequence[int]]) -> Tensor:
        rows = [
            Example((Segment(np.array(text, dtype=np.int32), np.zeros(len(text), dtype=np.float32)),))
            for text in texts
        ]
        with torch.no_grad():
            return self.policy(collate(rows).to(self.policy.model.device)).float().cpu()


def embedding_folder(name: str) -> Path | None:
    """The folder with what a run trained, if it was trained to embed, or that of such an adapter or model."""
    for folder in (Path(name) / "adapter", Path(name) / "model", Path(name)):
        if folder.is_dir() and (found := read_head(folder)) is not None:
            return folder if found[0].kind == "embedding" else None
    return None


def load_embedder(name: str, *, device: str = "auto", dtype: str = "auto", offline: bool = False) -> Embedder:
    """The embedding model of a run, an adapter or a model's folder, for which `embedding_folder` found one.

    Raises:
        ModelError: it cannot be loaded.
    """
    folder = embedding_folder(name)
    found = read_head(folder) if folder is not None else None
    if folder is None or found is None:
        raise ModelError(
            f"{name} was not trained to embed texts (method: embed), so it has no vectors to give"
        )
    head, pad = found
    where = pick_device(device)
    base, quantisation = folder, None
    adapted = (folder / "adapter_config.json").is_file()
    if adapted:
        saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        wanted, revision, unpack = saved["base_model_name_or_path"], saved.get("revision"), None
        if (Path(name) / "config.yaml").is_file():
            config = load_config(Path(name) / "config.yaml")
            wanted, revision, unpack = config.model.name, config.model.revision, config.model.unpack
            quantisation, offline = chosen(config), offline or config.offline
        base = folder_of(wanted, revision, offline, unpack)
    model = load_with_head(
        base, pick_dtype(dtype, where), where, head, pad_token_id=pad, quantisation=quantisation
    )
    if adapted:
        attach_adapter(model, folder, trainable=False)
    own = (folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(str(base), offline=offline) if not own else _tokenizer(folder)
    policy = choose_policy(model, make=partial(HeadPolicy, kind=head)).policy
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return Embedder(policy, tokenizer, most if isinstance(most, int) and most > 0 else None)


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _portions(lengths: Sequence[int]) -> list[slice]:
    """Neighbours that together are short enough."""
    found, start, total = [], 0, 0
    for place, length in enumerate(lengths):
        if place > start and total + length > TOKENS_AT_ONCE:
            found.append(slice(start, place))
            start, total = place, 0
        total += length
    return [*found, slice(start, len(lengths))]
