"""Serve a run or a model over HTTP, as OpenAI's API."""

from typing import Annotated, Literal

import typer

Engine = Annotated[
    Literal["native", "llama", "vllm"] | None,
    typer.Option(help="What computes. [llama (llama.cpp) for a GGUF file where it is there, else native]"),
]
SharePrompts = Annotated[
    bool,
    typer.Option(
        "--prefix-cache/--no-prefix-cache", help="Read prompts from where they part from earlier ones."
    ),
]


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or what `model:` takes in a config."),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="A run or adapter on the same base; may be given again."),
    ] = None,
    engine: Engine = None,
    called: Annotated[
        str | None,
        typer.Option("--name", help="What requests call the model. [its folder's name, or its id]"),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="LUTHIER_API_KEY", help="Key that clients must send; may be given again, parted by spaces."
        ),
    ] = None,
    answers: Annotated[int, typer.Option(help="Most answers at a time.", min=1)] = 64,
    cache_tokens: Annotated[
        int | None, typer.Option(help="Most tokens at a time. [what a quarter of free memory holds]", min=64)
    ] = None,
    queue: Annotated[int, typer.Option(help="Most requests that wait; others get 429.", min=1)] = 256,
    max_body: Annotated[int, typer.Option(help="Largest request in bytes; others get 413.", min=1)] = 4 << 20,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt; others get 413.", min=1)
    ] = None,
    max_answer_tokens: Annotated[
        int | None, typer.Option(help="Longest answer that may be asked for.", min=1)
    ] = None,
    usual_answer_tokens: Annotated[
        int, typer.Option(help="Longest answer where a request does not say.", min=1)
    ] = 1024,
    patience: Annotated[
        float, typer.Option(help="Seconds that open requests are given when the server is ended.", min=0)
    ] = 30.0,
    share_prompts: SharePrompts = True,
    offline: Annotated[bool, typer.Option("--offline", help="Refuse the network.")] = False,
) -> None:
    """Serve a run or a model over HTTP, as OpenAI's API: chats, completions, models.

    Example: luthier serve runs/my-first --adapter formal=runs/formal
    """
    from luthier.cli._serve import Wishes, start

    start(
        Wishes(
            name, tuple(adapter or ()), engine, called, host, port, tuple(api_key or ()), answers, cache_tokens, queue,
            max_body, max_prompt_tokens, max_answer_tokens, usual_answer_tokens, patience,
            share_prompts, offline,
        )
    )  # fmt: skip
