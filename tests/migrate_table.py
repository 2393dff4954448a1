"""The table of every example configuration and what becomes of it. Run it to write `docs/migrating-table.md` anew."""

from dataclasses import dataclass
from pathlib import Path

from luthier.migrate.findings import Imported, Kind
from luthier.migrate.tools import Refused, import_file
from migrate_parts import SHARED

TABLE = Path(__file__).parents[1] / "docs" / "migrating-table.md"
_HEAD = """# Example configurations of other tools, and what becomes of them

Every example that LLaMA-Factory, Axolotl and torchtune ship, taken by `luthier import`. `tests/migrate` holds this
table to what happens; `python tests/migrate_table.py` writes it anew. See [migrating](migrating.md).
"""


@dataclass(frozen=True)
class Example:
    """One example file: what it came to, or why it came to nothing."""

    name: str
    result: Imported | None
    reason: str = ""

    def row(self) -> str:
        """Its line in the table."""
        if self.result is None:
            return f"| `{self.name}` | refused | {_escaped(self.reason)} |"
        lost = dict.fromkeys(finding.key for finding in self.result.of(Kind.NONE, Kind.UNKNOWN))
        keys = ", ".join(f"`{key}`" for key in lost)
        what = "imported with notes" if lost or self.result.of(Kind.NOTED) else "imported"
        return f"| `{self.name}` | {what} | {f'no counterpart: {keys}' if keys else ''} |"


def examples() -> list[Example]:
    """All examples, tool by tool."""
    found = []
    for file in sorted(SHARED.glob("*/*")):
        name = f"{file.parent.name}/{file.name}"
        try:
            found.append(Example(name, import_file(file)))
        except Refused as refused:
            found.append(Example(name, None, str(refused).partition(" cannot be imported: ")[2]))
    return found


def table(found: list[Example]) -> str:
    """The whole page."""
    parts = [_HEAD]
    for tool in dict.fromkeys(example.name.partition("/")[0] for example in found):
        own = [example for example in found if example.name.startswith(f"{tool}/")]
        read = sum(example.result is not None for example in own)
        parts.append(f"## {tool}: {read} of {len(own)} imported\n")
        parts.append("| file | what happens | why, or what is lost |\n|---|---|---|")
        parts.append("\n".join(example.row() for example in own) + "\n")
    return "\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TABLE.write_text(table(examples()), encoding="utf-8")
    print(TABLE)
