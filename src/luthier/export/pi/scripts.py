"""The texts of the folder: how to run it, and what was predicted."""

from luthier.export.pi.predict import Prediction


def llama_script(file: str, context: int) -> str:
    """Serves the model with llama.cpp."""
    return (
        "#!/bin/sh\n"
        "# llama.cpp's server with a page to chat in, on this machine alone; further options can follow\n"
        'cd "$(dirname "$0")" || exit 1\n'
        f'exec llama-server -m {file} -c {context} -t "$(nproc)" --jinja --host 127.0.0.1 --port 8080 "$@"\n'
    )


def ollama_script(name: str) -> str:
    """Makes the model known to Ollama and talks to it."""
    return (
        "#!/bin/sh\n"
        'cd "$(dirname "$0")" || exit 1\n'
        f'ollama create {name} -f Modelfile && exec ollama run {name} "$@"\n'
    )


def page(file: str, kind: str, found: Prediction) -> str:
    """What the folder's README.md says of running it."""
    size = 1e6 if found.file < 1e9 else 1e9
    unit = "MB" if size == 1e6 else "GB"

    def shown(count: float) -> str:
        return f"{count / size:.1f} {unit}"

    parts = f"the file {shown(found.file)}, keys and values of {found.context} tokens {shown(found.cache)}, "
    parts += f"buffers {shown(found.buffers)}"
    return f"""| | |
|---|---|
| `{file}` | weights in {kind}, tokenizer and chat template |
| `run-llama.cpp.sh` | llama.cpp's server, on port 8080 |
| `run-ollama.sh`, `Modelfile` | the same with Ollama |
| `self_test.py` | asks what was asked where this was written, compares the answers, measures the speed |

Copy the folder to the Raspberry Pi and run `python3 self_test.py` there first. It needs llama.cpp's `llama-server` on
the PATH.

### Predicted for a Raspberry Pi 5 with 8 GB
| | |
|---|---|
| memory | {shown(found.memory)}: {parts} |
| context that fits | {found.context} tokens |
| speed | {found.speed:.1f} tokens a second at the beginning, {found.speed_when_full:.1f} when the context is full |

How: a token reads {shown(found.read)} of weights and the keys and values so far, and llama.cpp reads about
{found.bandwidth / 1e9:.0f} GB a second there (9.8 to 10.6 in llama.cpp's issue 26484). This is a prediction, not a
measurement; very small models are slower, because then memory is not the only limit. How long a prompt takes is not
predicted.
"""
