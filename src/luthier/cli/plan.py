"""Tell how much memory a run will take, before anything is loaded."""

from typing import Annotated, Literal

import typer

from luthier.config.load import load_with_places
from luthier.config.overrides import split_arguments
from luthier.errors import ConfigError

GB = 10**9


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN.YAML|KEY=VALUE", help="A config file, settings, or both.", show_default=False
        ),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="Where it would train; absent: as model.device says."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens in a micro-batch; absent: as the config says.", min=1)
    ] = None,
) -> None:
    """Prints what training as the config says takes at its peak, part by part, with all activations kept and with
    all made again. No weight is read; of a model on the hub only its config.json is fetched.

    luthier plan run.yaml quant=nf4 lora.rank=32 --tokens 8192
    """
    if not arguments:
        raise ConfigError("there is nothing to plan; name a config, as in: luthier plan run.yaml")
    file, overrides = split_arguments(arguments)
    config, _ = load_with_places(file, overrides)

    from luthier.memory import free_memory
    from luthier.models.activations.levels import Level
    from luthier.models.device import pick_device
    from luthier.plan.memory import peak_of
    from luthier.training.sketch import sketch

    where = device or pick_device(config.model.device).type
    most = tokens or config.train.micro_tokens
    drawn = sketch(config, device=where)
    kinds = {"activations kept": Level.KEEP_ALL, "made again": Level.KEEP_INPUT}
    peaks = {name: peak_of(drawn.sizes(level), most) for name, level in kinds.items()}
    print(
        f"{config.model.name}: {drawn.fixed.num_weights:,} weights, training on {where}, "
        f"micro-batches of {most:,} tokens; GB"
    )
    names = dict.fromkeys(part for peak in peaks.values() for part in peak.parts)
    print(f"{'':<28}" + "".join(f"{name:>18}" for name in peaks))
    for name in names:
        print(f"{name:<28}" + "".join(f"{peak.parts.get(name, 0) / GB:>18.2f}" for peak in peaks.values()))
    print(f"{'while loading':<28}" + "".join(f"{peak.loading / GB:>18.2f}" for peak in peaks.values()))
    print(f"{'peak':<28}" + "".join(f"{peak.total / GB:>18.2f}" for peak in peaks.values()))
    for note in drawn.notes:
        print(note)
    if device is None or device == "cpu":
        free = free_memory(pick_device(where)) / GB
        print(f"{free:.2f} GB are free here now; memory.activations: auto keeps as much as fits")
