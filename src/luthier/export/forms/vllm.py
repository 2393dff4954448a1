"""A folder for vLLM, merged or with --adapter-only, and the command that serves it."""

from typing import TYPE_CHECKING

from luthier.export.job import Job, Written

if TYPE_CHECKING:
    from luthier.export.serving.folder import Facts

CALLS = {"hermes": "hermes", "llama3": "llama3_json", "mistral": "mistral"}
THOUGHTS = {"think": "qwen3"}


def write(job: Job) -> Written:
    """Model or adapter with serve.sh and SERVE.md."""
    from luthier.export.serving.folder import Server, write_served
    from luthier.export.serving.refusals import refused_parts

    about = (
        "Written for vLLM 0.10 and newer. The command was not started here: vLLM is not part of Luthier.",
    )
    server = Server("vLLM", arguments, lambda settings: list(refused_parts(settings)), about)
    return write_served(job, server, "vllm")


def arguments(facts: "Facts") -> list[str]:
    """The words of the command."""
    from luthier.export.serving.refusals import limit_for

    words = ["vllm", "serve", facts.model, "--host", "127.0.0.1"]
    words += [] if facts.revision is None else ["--revision", facts.revision]
    if facts.adapter is None:
        words += ["--served-model-name", facts.name]
    else:
        limit = str(limit_for(int(facts.adapter["r"])))
        words += ["--enable-lora", "--lora-modules", f"{facts.name}=.", "--max-lora-rank", limit]
    words += ["--dtype", facts.dtype, "--max-model-len", str(facts.context)]
    words += ["--chat-template", "chat_template.jinja"] if facts.template else []
    if facts.speaks.calls is not None:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", CALLS[facts.speaks.calls]]
    if facts.speaks.thoughts is not None:
        words += ["--reasoning-parser", THOUGHTS[facts.speaks.thoughts]]
    return words
