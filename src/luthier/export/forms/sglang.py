"""A folder for SGLang, merged or with --adapter-only, and the command that serves it."""

from typing import TYPE_CHECKING

from luthier.export.job import Job, Written

if TYPE_CHECKING:
    from luthier.export.serving.folder import Facts

CALLS = {"hermes": "qwen25", "llama3": "llama3", "mistral": "mistral"}
THOUGHTS = {"think": "qwen3"}


def write(job: Job) -> Written:
    """Model or adapter with serve.sh and SERVE.md."""
    from luthier.export.serving.folder import Server, write_served
    from luthier.export.serving.refusals import refused_parts

    about = ("The command was not started here: SGLang is not part of Luthier.",)
    server = Server("SGLang", arguments, lambda settings: list(refused_parts(settings)), about)
    return write_served(job, server, "sglang")


def arguments(facts: "Facts") -> list[str]:
    """The words of the command."""
    words = ["python", "-m", "sglang.launch_server", "--model-path", facts.model, "--host", "127.0.0.1"]
    words += [] if facts.revision is None else ["--revision", facts.revision]
    if facts.adapter is None:
        words += ["--served-model-name", facts.name]
    else:
        words += [
            "--enable-lora",
            "--lora-paths",
            f"{facts.name}=.",
            "--max-lora-rank",
            str(facts.adapter["r"]),
        ]
    words += ["--dtype", facts.dtype, "--context-length", str(facts.context)]
    words += ["--chat-template", "chat_template.jinja"] if facts.template else []
    words += ["--tool-call-parser", CALLS[facts.speaks.calls]] if facts.speaks.calls is not None else []
    words += (
        ["--reasoning-parser", THOUGHTS[facts.speaks.thoughts]] if facts.speaks.thoughts is not None else []
    )
    return words
