"""Vectors over HTTP: those that transformers computes from the same folder, pooled as the model was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

from lora_models import teach  # noqa: E402
from luthier.models.adapter_files import save_adapter  # noqa: E402
from luthier.models.embedder import embedding_folder, load_embedder  # noqa: E402
from luthier.models.head_files import save_head  # noqa: E402
from luthier.models.lora import apply_lora  # noqa: E402
from luthier.models.value_head import Head, load_with_head  # noqa: E402
from serve_parts import native, running, tiny_shelf  # noqa: E402
from tiny_runs import save_tiny_model  # noqa: E402

TEXTS = ["a red house", "the dog", "one two three four five six"]


def plain(folder: Path, pooling: str, texts: list[str] = TEXTS) -> torch.Tensor:
    """The vectors by transformers' own classes."""
    model, tokenizer = (
        AutoModel.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    found = []
    for text in texts:
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0]
        found.append(hidden[-1] if pooling == "last" else hidden.mean(0))
    return F.normalize(torch.stack(found), dim=-1)


def save_embedding_model(folder: Path, pooling: Any) -> Path:
    save_tiny_model(folder)
    head = Head("embedding", pooling=pooling)
    model = load_with_head(folder, torch.float32, torch.device("cpu"), head)
    model.save_pretrained(folder)
    save_head(head, folder, hidden_size=32, max_length=512, pad_token_id=None)
    return folder


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_are_those_of_transformers(tmp_path: Path, pooling: str) -> None:
    folder = save_embedding_model(tmp_path / "model", pooling)
    embedders = {"vectors": load_embedder(str(folder), device="cpu", dtype="float32")}
    with running({}, native({}), embedders=embedders) as server:
        client = server.client()
        reply = client.embeddings.create(model="vectors", input=TEXTS)
        found = torch.tensor([one.embedding for one in reply.data])
        torch.testing.assert_close(found, plain(folder, pooling), atol=1e-5, rtol=0)
        floats = client.embeddings.create(model="vectors", input=TEXTS[1], encoding_format="float")
        torch.testing.assert_close(torch.tensor(floats.data[0].embedding), found[1], atol=1e-6, rtol=0)
        short = client.embeddings.create(model="vectors", input=TEXTS, dimensions=8)
        cut = F.normalize(found[:, :8], dim=-1)
        torch.testing.assert_close(
            torch.tensor([one.embedding for one in short.data]), cut, atol=1e-5, rtol=0
        )
        assert reply.usage.prompt_tokens == sum(len(embedders["vectors"].ids(text)) for text in TEXTS)
        for wrong in ([], [""], [[]], [[10**6]], "x " * 600):
            with pytest.raises(openai.BadRequestError):
                client.embeddings.create(model="vectors", input=wrong)
        with pytest.raises(openai.BadRequestError, match="vectors have 32"):
            client.embeddings.create(model="vectors", input="a", dimensions=33)
        with pytest.raises(openai.BadRequestError, match="trained to embed texts and cannot write"):
            client.chat.completions.create(model="vectors", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="other", input="a")
        assert [model.id for model in client.models.list()] == ["vectors"]


def test_an_adapter_is_on_its_base(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "model")
    head = Head("embedding", pooling="last")
    model = load_with_head(base, torch.float32, torch.device("cpu"), head)
    apply_lora(model, rank=4)
    teach(model)
    run = tmp_path / "run"
    save_adapter(model, run / "adapter", base_name=str(base))
    save_head(head, run / "adapter", hidden_size=32, max_length=512, pad_token_id=None)
    assert embedding_folder(str(run)) == run / "adapter" and embedding_folder(str(base)) is None
    embedder = load_embedder(str(run), device="cpu", dtype="float32")
    ids = [embedder.ids(text) for text in TEXTS]
    with torch.no_grad():
        right = torch.stack([model(input_ids=torch.tensor([one])).last_hidden_state[0, -1] for one in ids])
    torch.testing.assert_close(embedder.vectors(ids), F.normalize(right, dim=-1), atol=1e-5, rtol=0)


def test_a_model_that_writes_says_so(tmp_path: Path) -> None:
    shelf = tiny_shelf(tmp_path / "model")
    said = pytest.raises(openai.BadRequestError, match="it was not trained to embed texts")
    with running(shelf, native(shelf)) as server, said:
        server.client().embeddings.create(model="tiny", input="a")
