"""The share of predictions whose Python code passes tests. It runs what the model wrote; only where it is named.

`code:tests` runs the tests in the column `tests` of each row after the code of the answer: Python that fails by raising
(`assert add(1, 2) == 3`), as one text or a list. The answer's code is its first fenced block, of Python or of no named
language, or the whole answer if it has no fence. How it is fenced in: `sandbox.py`. The system must keep it from the
network, or nothing is run.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from luthier.errors import ConfigError
from luthier.evaluate import sandbox
from luthier.evaluate.intervals import Sums, mean

USUAL = False
ARGUMENT = "the column with the tests"
COLUMN = True
_BLOCK = re.compile(r"^```[ \t]*(\w*)[^\n`]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")


def settle(argument: str | None) -> str:
    """The column; that code can be run safely here is checked, too."""
    if not argument:
        raise ConfigError("code needs the column of the rows that has the tests, as in code:tests")
    sandbox.check()
    return argument


def tally(predictions: Sequence[str], references: Sequence[str], column: str) -> Sums:
    """`code`: the share of answers whose code passes; the tests stand in the place of the references."""
    programs = [f"{code_of(text)}\n\n{tests}\n" for text, tests in zip(predictions, references, strict=True)]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        ends = list(pool.map(sandbox.run, programs))
    return mean([end.passed for end in ends], binary=True)


def code_of(text: str) -> str:
    """The code in an answer."""
    blocks = [code for language, code in _BLOCK.findall(text) if language.lower() in _PYTHON]
    return blocks[0] if blocks else text
