"""A model folder in Hugging Face's layout becomes a GGUF file, tensor by tensor.

First every tensor's name, shape and type in the file are found without reading it, so that what cannot be written is
known before anything is; then one after another is read, changed and written. Only one is in memory (of experts: those
of one projection of one layer).
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from luthier.errors import ModelError
from luthier.export.gguf.known import Architecture, architecture
from luthier.export.gguf.tokens import Vocabulary, vocabulary
from luthier.export.gguf.types import TYPES, FileType, encoded, size_in_bytes
from luthier.export.merge import base_shards
from luthier.runs.atomic import atomic_file, check_room

Progress = Callable[[int, int, str], None]
"""Called after each tensor with how many are done, of how many, and its name."""

EXPERT = re.compile(r"(?P<before>.*\.experts)\.(?P<number>\d+)\.(?P<after>\w+\.weight)")


@dataclass(frozen=True)
class Source:
    """A tensor of the folder, or those of several experts to be stacked."""

    name: str
    parts: tuple[tuple[Path, str], ...]
    stacked: bool = False

    def read(self, *, only_shape: bool = False) -> Tensor:
        """The values; on the meta device if only the shape is wanted."""
        found = []
        for file, name in self.parts:
            with safe_open(file, framework="pt") as opened:
                if only_shape:
                    found.append(torch.empty(opened.get_slice(name).get_shape(), device="meta"))
                else:
                    found.append(opened.get_tensor(name))
        return torch.stack(found) if self.stacked else found[0]


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its name there, shape and type."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return size_in_bytes(self.shape, self.kind)


def write_gguf(
    folder: Path,
    out: Path,
    kind: str,
    *,
    name: str | None = None,
    exact: Collection[str] = (),
    progress: Progress | None = None,
) -> None:
    """Writes the model in `folder` as one GGUF file.

    Args:
        kind: one of `TYPES`.
        name: what the file calls the model; absent: the folder's name.
        exact: layers that are kept in 16 bit where others take fewer, by their names or parts of these.

    Raises:
        ModelError: llama.cpp does not have this architecture, tokenizer or tensor, or would compute something else;
            or a weight is too large for 16 bit.
        RunError: the disk cannot take it. Nothing is left at `out` then.
    """
    file_type = TYPES[kind]
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    known = architecture(config)
    sources = list(_sources(folder, config))
    extra = list(known.more(config))
    words = vocabulary(_tokenizer(folder), config.vocab_size, _ends(folder))
    entries = _entries(known, sources, extra, file_type, exact)
    check_room(out, sum(entry.size for entry in entries))
    with atomic_file(out) as partial, closing(gguf.GGUFWriter(partial, known.name)) as writer:
        _describe(writer, words.name_for(name or folder.resolve().name), known, config, file_type)
        _add_words(writer, words)
        for entry in entries:
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.size, entry.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        tensors = chain.from_iterable(known.changed(source.name, source.read()) for source in sources)
        for done, (entry, (_, tensor)) in enumerate(zip(entries, chain(tensors, extra), strict=True), 1):
            _write(writer, entry, tensor)
            if progress is not None:
                progress(done, len(entries), entry.name)


def planned_sizes(folder: Path, kind: str, exact: Collection[str] = ()) -> list[tuple[str, int]]:
    """Names and bytes of the tensors that the file of a folder's model will have. Only headers are read."""
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    known = architecture(config)
    entries = _entries(known, list(_sources(folder, config)), list(known.more(config)), TYPES[kind], exact)
    return [(entry.name, entry.size) for entry in entries]


def _entries(
    known: Architecture,
    sources: Iterable[Source],
    extra: Iterable[tuple[str, Tensor]],
    file_type: FileType,
    exact: Collection[str],
) -> list[Entry]:
    shapes = chain.from_iterable(known.changed(one.name, one.read(only_shape=True)) for one in sources)
    found = [_entry(known.name_of(name), tensor, _type_of(name, file_type, exact)) for name, tensor in shapes]
    return found + [_entry(inside, tensor, file_type) for inside, tensor in extra]


def _write(writer: gguf.GGUFWriter, entry: Entry, tensor: Tensor) -> None:
    try:
        writer.write_tensor_data(encoded(tensor.float().numpy(), entry.kind))
    except OverflowError as error:
        raise ModelError(
            f"{entry.name} does not fit into 16-bit floats: {error}, and they end at 65504. "
            "Write gguf:bf16 or gguf:f32."
        ) from error


def _sources(folder: Path, config: Any) -> Iterator[Source]:
    """The tensors of the folder in the order of its files, experts together; without a head that is the embeddings."""
    experts: dict[str, list[tuple[int, Path, str]]] = {}
    for file, names in base_shards(folder).items():
        for name in names:
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            if match := EXPERT.fullmatch(name):
                experts.setdefault(f"{match['before']}.{match['after']}", []).append(
                    (int(match["number"]), file, name)
                )
            else:
                yield Source(name, ((file, name),))
    for name, parts in experts.items():
        yield Source(name, tuple((file, part) for _, file, part in sorted(parts)), stacked=True)


def _entry(name: str, tensor: Tensor, file_type: FileType) -> Entry:
    shape = tuple(tensor.shape)
    return Entry(name, shape, file_type.of(name, shape))


def _type_of(name: str, file_type: FileType, exact: Collection[str]) -> FileType:
    """The file's type, or that of 16 bit for a tensor of an exact layer."""
    parts = f".{name}."
    return file_type.at_least_16 if any(f".{layer}." in parts for layer in exact) else file_type


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ModelError(
            f"{folder} has no tokenizer that transformers can read, and a GGUF holds one: {error}"
        ) from error


def _ends(folder: Path) -> list[int]:
    """Ids that end an answer, as the generation settings name them."""
    if not (folder / "generation_config.json").is_file():
        return []
    ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or ())


def _describe(
    writer: gguf.GGUFWriter, name: str, known: Architecture, config: Any, file_type: FileType
) -> None:
    """What the file is, and the numbers of the model."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type.number)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add: Mapping[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
        str: writer.add_string, list: writer.add_array,
    }  # fmt: skip
    for key, value in known.facts(config).items():
        add[type(value)](f"{known.name}.{key}", value)


def _add_words(writer: gguf.GGUFWriter, words: Vocabulary) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    for name, number in words.special.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    for name, whether in words.adds.items():
        writer.add_bool(f"tokenizer.ggml.add_{name}", whether)
    if words.templates:
        writer.add_chat_template(words.templates)
