"""Several adapters on one base: each is what it would be alone, and the base's weights are there once."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("openai")

from concurrent.futures import ThreadPoolExecutor

from lora_models import teach
from luthier.errors import ConfigError, ModelError
from luthier.models.adapter_files import save_adapter
from luthier.models.inference import load_for_inference
from luthier.models.lora import apply_lora
from luthier.serve.assistant import Assistant
from luthier.serve.shelf import load_shelf, other_bases
from serve_parts import native, running
from tiny_runs import save_tiny_model

CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and adapters of three kinds beside it."""
    path = tmp_path_factory.mktemp("adapters")
    save_tiny_model(path / "base")
    kinds = {
        "first": {"rank": 4},
        "second": {"rank": 8, "target": ["q_proj", "down_proj"]},
        "whole": {"rank": 2, "modules_to_save": ["norm"]},
        "lengths": {"rank": 2, "dora": True},  # not decoded from its parts
    }
    for seed, (name, options) in enumerate(kinds.items()):
        model = load_for_inference(str(path / "base"), **CPU).model
        apply_lora(model, **options)  # type: ignore[arg-type]
        teach(model, seed=seed)
        save_adapter(model, path / name, base_name=str(path / "base"))
    return path


def test_each_answers_as_it_does_alone_also_side_by_side(folder: Path) -> None:
    names = ("first", "second", "whole", "lengths")
    shelf = load_shelf(str(folder / "base"), {name: folder / name for name in names}, **CPU)
    question = "one two three"

    with running(shelf, native(shelf)) as server:

        def said(name: str) -> str:
            reply = server.client().chat.completions.create(
                model=name, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=16
            )
            return reply.choices[0].message.content

        with ThreadPoolExecutor(10) as pool:
            together = list(pool.map(said, ("base", *names) * 3))
        assert "side by side" in server.engine.ways["first"] and "lengths" in server.engine.ways["lengths"]
        listed = {model.id: model.parent for model in server.client().models.list()}
    assert listed == {"base": None, **dict.fromkeys(names, "base")}
    alone = [
        Assistant(load_for_inference(str(folder / name), **CPU)).answer(question, max_new_tokens=16)
        for name in ("base", *names)
    ]
    assert together == alone * 3 and len(set(alone)) == 5


def test_weights_are_there_once_and_stay_what_they_were(folder: Path) -> None:
    shelf = load_shelf(str(folder / "base"), {"a": folder / "first", "b": folder / "whole"}, **CPU)
    trees = [offered.loaded.model for offered in shelf.values()]
    fresh = dict(load_for_inference(str(folder / "base"), **CPU).model.named_parameters())
    base = dict(trees[0].named_parameters())
    assert base.keys() == fresh.keys() and all(torch.equal(base[name], fresh[name]) for name in fresh)
    own = {tensor.data_ptr() for tensor in base.values()}
    for tree in trees[1:]:
        shared = {tensor.data_ptr() for tensor in [*tree.parameters(), *tree.buffers()]}
        assert len(own - shared) <= 1  # the tied table may be there under one name or two


def test_a_run_is_served_beside_others_with_its_own_adapter(folder: Path, tmp_path: Path) -> None:
    from luthier.training.run import run
    from tiny_runs import tiny_config

    result = run(tiny_config(tmp_path, train={"epochs": 1}, eval={"samples": 0}), say=str)
    other = tmp_path / "other"
    model = load_for_inference(str(tmp_path / "model"), **CPU).model
    apply_lora(model, rank=2)
    teach(model)
    save_adapter(model, other, base_name=str(tmp_path / "model"))
    shelf = load_shelf(str(result.folder), {"other": other}, **CPU)
    assert list(shelf) == [result.folder.name, "other"]
    for name, place in ((result.folder.name, result.folder), ("other", other)):
        mine = Assistant(shelf[name].loaded).answer("red green", max_new_tokens=8)
        assert mine == Assistant(load_for_inference(str(place), **CPU)).answer("red green", max_new_tokens=8)


def test_an_adapter_of_another_base_is_told(folder: Path) -> None:
    base = str(folder / "base")
    assert other_bases(base, [folder / "first"]) == []
    assert other_bases(str(folder / "second"), [folder / "first"]) == []
    (line,) = other_bases("owner/another", [folder / "first"])
    assert line.endswith(f"says that it was trained on {base}, not on owner/another")


def test_what_is_no_adapter_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither an adapter nor a run that trained one"):
        load_shelf(str(folder / "base"), {"x": tmp_path}, **CPU)
    with pytest.raises(ConfigError, match="the model itself is called so"):
        load_shelf(str(folder / "base"), {"base": folder / "first"}, **CPU)


def test_an_adapter_of_a_base_of_other_shapes_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "wide", hidden_size=48)
    with pytest.raises(ModelError, match="first"):
        load_shelf(str(other), {"x": folder / "first"}, **CPU)
