"""The size budget: files of at most 400 lines, functions of at most 60, the training loop of at most 150.

Prints every place that is over it and exits with 1 if there is one.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "tests", "bench", "examples", "tools")
MAX_FILE, MAX_FUNCTION = 400, 60
TIGHTER = {"src/luthier/training/loop.py": 150}


def faults(path: Path) -> Iterator[str]:
    """What is too long in one file."""
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    limit = TIGHTER.get(name, MAX_FILE)
    num_lines = text.count("\n")
    if num_lines > limit:
        yield f"{name}: {num_lines} lines, at most {limit}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION}"


def main() -> int:
    """Checks every Python file of the project."""
    found = [
        fault
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)  # the peers' venv
        for fault in faults(path)
    ]
    print("\n".join(found) or "sizes: within the budget")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
