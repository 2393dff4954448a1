"""The section that names the model to learn from."""

from typing import Literal

from luthier.config.section import Positive, Section, Text


class TeacherSection(Section):
    """The model that a method such as `distill` learns from. `teacher: NAME` is short for `teacher: {name: NAME}`."""

    name: Text
    """A folder, a hub id, a `.gguf` file or a `demo:` name. Its vocabulary must be that of `model`."""

    revision: Text | None = None
    """Commit, branch or tag of a hub id."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of its weights, which are never trained. `auto`: that of the model that is trained."""

    top_k: Positive | None = None
    """Ask it once, before training, for its so many likeliest tokens of each prediction, such as 64, and keep them on
    disk; then it takes no memory in training. Absent: it is asked in each step for its whole distribution."""
