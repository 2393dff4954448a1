"""The C++ side of the kernels: compiled once on the machine that runs it, kept in the user's cache, called by ctypes.

    found = native.library()       # None: no compiler, or the build failed; native.reason() says why
    found.function("rms_norm_forward_f32", "ppi")(first.data_ptr(), second.data_ptr(), 3)

The sources (`cpp/*.cpp`, with `cpp/*.h`) are plain C++17 behind a C interface: data pointers, sizes and strides in
elements, no headers of torch, which would take a minute. A build took 14 to 33 seconds on two busy cores, once a
machine. Compiling on the spot lets the compiler use all the vector instructions of this very processor. Their
threads are those of torch: torch's wheel brings libgomp and has it loaded before we are, so our loops run on its
threads and follow `torch.set_num_threads`.

Every op has a path in plain torch; nothing here ever raises because there is no compiler.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from luthier.places import cache_folder

SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}  # element types that the C++ side knows
COMPILERS = ("g++", "clang++", "c++")
SOURCES = Path(__file__).parent / "cpp"

# No -ffast-math: masks are -inf, and an overflow must stay visible as inf or nan. What is given up is errno, traps,
# and nothing else; that lets square roots and selections be vectorised.
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
)
THREADS = (("-fopenmp",), ("-fopenmp-simd",))  # the second for compilers that come without OpenMP: one thread
_COMPILE_SECONDS = 120.0
_UNDER_WAY = "building-"
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}
_enabled: ContextVar[bool] = ContextVar("native_enabled", default=True)


class Library:
    """The loaded C++ side; hands out its functions."""

    def __init__(self, path: Path):
        self.path = path
        self._handle = ctypes.CDLL(str(path))
        self._functions: dict[str, Callable[..., None]] = {}

    def function(self, name: str, signature: str) -> Callable[..., None]:
        """The function `name`, which returns nothing.

        `signature` has one letter an argument: p pointer, i int64, f float, d double; spaces are free.
        """
        found = self._functions.get(name)
        if found is None:
            raw = self._handle[name]
            raw.argtypes, raw.restype = [_TYPES[letter] for letter in signature.replace(" ", "")], None
            found = self._functions[name] = raw
        return found


@dataclass(frozen=True)
class Outcome:
    """What came of the attempt to build and load: a library, or the reason why there is none."""

    library: Library | None
    reason: str = ""


def build_ahead() -> None:
    """Starts the build in the background, so that it is done by the time that the first pass needs it."""
    _attempt()


def library() -> Library | None:
    """The C++ side, built on the first call (seconds) or taken from the cache; None where there is none."""
    torch.get_num_threads()  # in a new Python thread, only this sets OpenMP's thread count to torch's
    return _outcome().library if _enabled.get() else None


def reason() -> str:
    """Why `library()` is None, as one sentence for people; empty where it is not."""
    return _outcome().reason if _enabled.get() else "The C++ kernels are switched off."


def library_for(*tensors: Tensor | None) -> Library | None:
    """`library()` where it can work on these tensors: on the CPU, all of one known dtype, last stride 1."""
    dtype = None
    for tensor in tensors:  # runs several times a layer and step: few attribute look-ups
        if tensor is None:
            continue
        if dtype is None:
            dtype = tensor.dtype
            if dtype not in SUFFIX:
                return None
        if tensor.dtype is not dtype or not tensor.is_cpu:
            return None
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            return None
    return library()


def pointer(tensor: Tensor | None) -> int | None:
    """Address of the first element, for a `p` argument; None becomes a null pointer."""
    return None if tensor is None else tensor.data_ptr()


@contextmanager
def disabled() -> Iterator[None]:
    """Within this block there is no C++ side (in this thread): every op takes its path in plain torch."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


@functools.cache
def _outcome() -> Outcome:
    return _attempt().result()


def _attempt() -> Future[Outcome]:
    """The one attempt of this process, under way or done. A forked child makes its own: it has no such thread."""
    return _attempt_of(os.getpid())


@functools.cache
def _attempt_of(process: int) -> Future[Outcome]:
    attempt: Future[Outcome] = Future()
    Thread(target=lambda: attempt.set_result(_build_or_say_why()), daemon=True).start()
    return attempt


def _build_or_say_why() -> Outcome:
    """Never raises: whoever waits for the outcome would wait for ever."""
    try:
        return build(cache_folder("native"))
    except Exception as error:
        return Outcome(None, f"The C++ kernels could not be built: {type(error).__name__}: {error}")


def build(folder: Path, compilers: Sequence[str] = COMPILERS, sources: Path = SOURCES) -> Outcome:
    """Compiles `sources` into `folder`, unless that was done before, and loads the result. Never raises."""
    try:
        found = list(dict.fromkeys(path for name in compilers if (path := shutil.which(name))))
        fault = f"There is no C++ compiler (looked for {', '.join(compilers)})."
        if found and (unsafe := _make_private(folder)):
            return Outcome(None, unsafe)
        _sweep(folder)
        for compiler in found:  # an old one may fail where another works
            target = folder / f"{_key(compiler, sources)}.so"
            if target.exists() and _is_ours(target):
                with suppress(OSError):  # a file damaged by a crash of the machine: built again below
                    return Outcome(Library(target))
            fault = _compile(compiler, sources, target)
            if not fault:
                return Outcome(Library(target))
        return Outcome(None, fault)
    except (OSError, subprocess.SubprocessError) as error:
        return Outcome(None, f"The C++ kernels could not be built or loaded in {folder}: {error}")


def _make_private(folder: Path) -> str:
    """Makes a folder that nobody else can write to, since code is loaded from it. Returns what is wrong with it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        return f"{folder} belongs to another user, so no code is loaded from it."
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    return ""


def _sweep(folder: Path) -> None:
    """Removes what processes left behind that ended while they compiled."""
    for left in folder.glob(f"{_UNDER_WAY}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 10 * _COMPILE_SECONDS:  # nobody works in it any more
                shutil.rmtree(left)


def _is_ours(file: Path) -> bool:
    """Whether nobody else can have written this file."""
    found = file.stat()
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def _key(compiler: str, sources: Path) -> str:
    """Names a build by everything that decides what comes out of it."""
    digest = hashlib.sha256()
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_COMPILE_SECONDS).stdout
    for part in (compiler.encode(), version, repr((FLAGS, THREADS)).encode(), _processor().encode()):
        digest.update(part + b"\0")
    for path in sorted([*sources.glob("*.cpp"), *sources.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _processor() -> str:
    """The processor's model and instruction sets: the cache may lie in a home shared by unlike machines."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    told = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *sorted(told)])


def _compile(compiler: str, sources: Path, target: Path) -> str:
    """Builds `target`, whole or not at all, however many processes try at once. Returns the fault, if any."""
    fault = ""
    for threads in THREADS:
        with tempfile.TemporaryDirectory(prefix=_UNDER_WAY, dir=target.parent) as folder:
            fault = _build_in(Path(folder), [compiler, *FLAGS, *threads], sources)
            if not fault:
                made = Path(folder, "native.so")
                made.chmod(0o700)  # whatever the umask: what others may write is not loaded again
                os.replace(made, target)  # same content whoever comes last
                return ""
    return fault


def _build_in(folder: Path, command: list[str], sources: Path) -> str:
    """Compiles the sources side by side and links them to `folder`/native.so. Returns the fault, if any."""
    objects = {path: folder / f"{path.stem}.o" for path in sorted(sources.glob("*.cpp"))}
    compiling = [[*command, "-c", str(path), "-o", str(made)] for path, made in objects.items()]
    linking = [*command, "-shared", *map(str, objects.values()), "-o", str(folder / "native.so")]
    return _run(compiling) or _run([linking])


def _run(commands: list[list[str]]) -> str:
    """Runs commands side by side to their ends. Returns the first complaint of one that failed."""
    pipe, null, merged = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT
    running = [
        subprocess.Popen(c, text=True, errors="replace", stdin=null, stdout=pipe, stderr=merged)
        for c in commands
    ]
    try:
        said = [process.communicate(timeout=_COMPILE_SECONDS)[0] for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    for process, command, text in zip(running, commands, said, strict=True):
        if process.returncode:
            return f"{command[0]} failed with status {process.returncode}: {_first_error(text)}"
    return ""


def _first_error(text: str) -> str:
    lines = text.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "error" in line), lines[0])
