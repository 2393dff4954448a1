"""Talk to a model or a run in the terminal."""

from typing import Annotated

import typer


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or what `model:` takes in a config."),
    ],
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[
        float, typer.Option(help="Higher is more varied; 0 always takes the likeliest.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens with this probability.")
    ] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from this many of the likeliest tokens.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 512,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable. Absent: drawn anew.")] = None,
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this one question and leave.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Refuse the network.")] = False,
) -> None:
    """Talk to a model or a run. Questions can also be piped in, one a line; /help lists the commands."""
    from secrets import randbits

    from luthier.rollout.sampling import SamplingSettings

    settings = SamplingSettings(  # before the model is loaded, so that a wrong option is told at once
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=randbits(31) if seed is None else seed,
    )

    from luthier.errors import ModelError
    from luthier.models.inference import load_for_inference
    from luthier.rollout.native import NativeGenerator
    from luthier.serve.chat import ChatSession
    from luthier.serve.terminal import Terminal, answer, converse

    terminal = Terminal()
    if terminal.interactive:
        terminal.note(f"Loading {name} ...")
    loaded = load_for_inference(name, offline=offline)
    if loaded.template is None:
        raise ModelError(
            f"model {name} has no chat template, so it cannot be talked to. Give a model that was tuned for "
            "chat (its name often ends in -Instruct), or a run whose data.template names one."
        )
    generator = NativeGenerator(loaded.model, eos_token_ids=loaded.eos_token_ids, tokenizer=loaded.tokenizer)
    session = ChatSession(generator, loaded.template, settings, system=system)
    if once is not None:
        answer(session, terminal, once)
    else:
        converse(session, terminal)
