"""A template in Go's language writes what the model's own template writes, or is not written."""

import pytest

from chat_samples import CHATML
from luthier.errors import ModelError
from luthier.export.ollama import proof
from luthier.export.ollama.go import GoTemplate, to_json
from luthier.export.ollama.go_template import go_template
from luthier.export.ollama.proof import difference, ollama_values
from luthier.export.ollama.shape import text_shape
from luthier.export.ollama.template import _renderer
from nasty_templates import NASTY
from ollama_templates import DAY, made, shared


def asked(source: str, messages: list[dict[str, str]], **more: object) -> str:
    return _renderer(source, DAY, {"bos_token": "<s>", "eos_token": "</s>"}, "")(
        messages, add_generation_prompt=True, **more
    )


CHAT = [
    {"role": "system", "content": "Be {{ brief }}."},
    {"role": "user", "content": "Hello\n\nthere"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Why?"},
]


@pytest.mark.parametrize(
    ("name", "thoughts", "tools"),
    [
        ("qwen2_5", False, True),
        ("qwen3", True, True),
        ("qwen3_instruct_2507", False, True),
        ("llama3_1", False, True),
        ("phi3", False, False),
        ("gemma", False, False),
        ("deepseekv3", False, False),
    ],
)
def test_templates_of_real_models(name: str, thoughts: bool, tools: bool) -> None:
    source = shared(name)
    found = made(source)
    assert (found.shape.thinking is not None, found.shape.calls is not None) == (thoughts, tools)
    chat = CHAT if found.shape.start.system is not None else CHAT[1:]
    assert GoTemplate(found.source).run(ollama_values(chat)) == asked(source, chat)
    assert (
        difference(found.source, found.shape, _renderer(source, DAY, {"bos_token": "<s>"}, ""), seed=9)
        is None
    )


def test_thoughts_can_be_switched_off_and_are_kept_while_tools_are_used() -> None:
    source = shared("qwen3")
    template = GoTemplate(made(source).source)
    off = template.run(ollama_values(CHAT, think=False))
    assert off == asked(source, CHAT, enable_thinking=False) and off.endswith("<think>\n\n</think>\n\n")
    assert template.run(ollama_values(CHAT, think=True)) == asked(source, CHAT, enable_thinking=True)
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    using = [
        *CHAT,
        {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [call]},
        {"role": "tool", "name": "look", "content": "seen"},
    ]
    written = template.run(ollama_values(using))
    assert "<think>\nI look.\n</think>" in written
    assert written == asked(source, using).replace('{"at": "it"}', '{"at":"it"}')


def test_the_first_token_is_left_to_the_engine_that_adds_it() -> None:
    source = "{{ bos_token }}" + CHATML
    assert GoTemplate(made(source).source).run(ollama_values(CHAT)) == asked(source, CHAT)
    without = GoTemplate(made(source, adds_bos=True).source).run(ollama_values(CHAT))
    assert "<s>" + without == asked(source, CHAT)


@pytest.mark.parametrize("name", sorted(NASTY))
def test_an_odd_template_is_expressed_or_refused_but_never_wrong(name: str) -> None:
    source = NASTY[name][0] if isinstance(NASTY[name], tuple) else NASTY[name]
    try:
        found = made(source)
    except ModelError as error:
        assert "no template in Ollama's language is known" in str(error) and "llama-server --jinja" in str(
            error
        )
        return
    for seed in range(3):
        told = {"bos_token": "<s>", "eos_token": "</s>"}
        assert (
            difference(found.source, found.shape, _renderer(source, DAY, told, ""), seed=seed, tries=30)
            is None
        )


def test_what_depends_on_the_words_is_refused() -> None:
    with pytest.raises(ModelError, match=r"makes .*HI.*Go's"):
        made(
            "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('day', 'HI') }}</>{% endfor %}<assistant>"
        )


def test_a_wrong_template_is_noticed() -> None:
    """The proof itself: one newline less is found."""
    render = _renderer(CHATML, DAY, {}, "")
    shape = text_shape(render)
    right = go_template(shape)
    assert difference(right, shape, render) is None
    assert difference(right.replace("<|im_end|>\n", "<|im_end|>", 1), shape, render) is not None


@pytest.mark.parametrize(
    ("source", "note"),
    [
        (
            "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}<assistant>",
            "cuts white space",
        ),
        (
            "{{ strftime_now('%d %m') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>",
            "tells the day",
        ),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
            "<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>",
            "no place for system messages",
        ),
    ],
)
def test_what_is_different_all_the_same_is_told(source: str, note: str) -> None:
    (found,) = made(source).notes
    assert note in found


def test_the_template_is_told_what_training_told_it() -> None:
    source = CHATML + "{% if not brief %}At length.{% endif %}"
    assert "At length." in made(source).source
    assert "At length." not in made(source, brief=True).source


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('{{ if eq .A 1 }}one{{ else if eq .A 2 }}two{{ else }}more{{ end }}', "two"),
        ('{{ $x := "a" }}{{ range $i, $v := .L }}{{ if $i }}, {{ end }}{{ $v }}{{ $x = $v }}{{ end }};{{ $x }}',
         "p, q;q"),
        ("{{ range .L }}<{{ . }}{{ $.A }}>{{ end }}", "<p2><q2>"),
        ('{{ if and .A (not .Nothing) (gt (len (slice .L 1)) 0) }}{{ "{{" }}{{ end }}', "{{"),
        ("{{ json .D }}{{ .Nothing }}", '{"b":"\\u003c"}'),
    ],
)  # fmt: skip
def test_the_language(source: str, text: str) -> None:
    assert GoTemplate(source).run({"A": 2, "L": ["p", "q"], "D": {"b": "<"}}) == text


def test_json_is_written_as_go_does() -> None:
    assert to_json({"a": [1, "é & <"]}) == '{"a":[1,"é \\u0026 \\u003c"]}'
    assert proof.TRIES >= 30
