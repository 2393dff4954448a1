"""What a server tells of prompts that begin like earlier ones, and that models never share what they read."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from lora_models import teach  # noqa: E402
from luthier.models.adapter_files import save_adapter  # noqa: E402
from luthier.models.inference import load_for_inference  # noqa: E402
from luthier.models.lora import apply_lora  # noqa: E402
from luthier.serve.shelf import Offered, load_shelf  # noqa: E402
from serve_parts import Running, native, running, tiny_shelf  # noqa: E402
from tiny_runs import save_tiny_model  # noqa: E402

LONG = [{"role": "system", "content": "one two three four five " * 6}]
ASK: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 8}


def asked(server: Running, text: str, **more: Any) -> Any:
    return server.client().chat.completions.create(
        **{**ASK, **more}, messages=[*LONG, {"role": "user", "content": text}]
    )


def known(reply: Any) -> int:
    return reply.usage.prompt_tokens_details.cached_tokens


def counted(server: Running, model: str = "tiny") -> float:
    name = f'luthier_known_prompt_tokens_total{{model="{model}"}}'
    lines = httpx.get(f"{server.address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Offered]:
    return tiny_shelf(tmp_path_factory.mktemp("shared") / "model")


def test_known_tokens_are_told_and_counted_and_the_answer_is_the_same(shelf: dict[str, Offered]) -> None:
    with running(shelf, native(shelf)) as server, running(shelf, native(shelf, share_prompts=False)) as apart:
        first, second, again = (asked(server, text) for text in ("one", "two", "two"))
        assert known(first) == 0
        assert 16 < known(second) < second.usage.prompt_tokens
        assert known(again) == again.usage.prompt_tokens - 1  # the last one is read for what follows
        assert counted(server) == known(second) + known(again)
        for text, reply in (("one", first), ("two", second), ("two", again)):
            alone = asked(apart, text)
            assert known(alone) == 0
            assert alone.choices[0].message.content == reply.choices[0].message.content
        assert counted(apart) == 0


def test_a_stream_tells_known_tokens_too_and_several_prompts_add_up(shelf: dict[str, Offered]) -> None:
    with running(shelf, native(shelf)) as server:
        asked(server, "three")
        chunks = list(asked(server, "three", stream=True, stream_options={"include_usage": True}))
        assert known(chunks[-1]) == chunks[-1].usage.prompt_tokens - 1
        prompts = [[5] * 40 + [number] for number in range(3)]
        reply = server.client().completions.create(model="tiny", prompt=prompts, max_tokens=2)
        assert known(reply) in (80, 40, 0)  # by how many of them came between the same two tokens
        reply = server.client().completions.create(model="tiny", prompt=prompts, max_tokens=2)
        assert known(reply) == 120


def test_adapters_never_go_on_from_what_another_model_read(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "base")
    model = load_for_inference(str(tmp_path / "base"), device="cpu", dtype="float32").model
    apply_lora(model, rank=4)
    teach(model, seed=1)
    save_adapter(model, tmp_path / "other", base_name=str(tmp_path / "base"))
    shelf = load_shelf(str(tmp_path / "base"), {"other": tmp_path / "other"}, device="cpu", dtype="float32")
    with running(shelf, native(shelf)) as server, running(shelf, native(shelf, share_prompts=False)) as apart:
        for name in ("base", "other"):
            reply = asked(server, "four", model=name)
            assert known(reply) == 0
            alone = asked(apart, "four", model=name)
            assert reply.choices[0].message.content == alone.choices[0].message.content
        assert known(asked(server, "four", model="other")) > 0
