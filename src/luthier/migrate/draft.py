"""The configuration while it is being made: what the source says, what is written, what became of each key."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from luthier.config.places import Fault, Source
from luthier.config.words import did_you_mean
from luthier.migrate.findings import Finding, Imported, Kind
from luthier.migrate.readers import Misread

Rule = Callable[["Draft", str, Any], None]
"""What a table does with a key: (draft, key, value)."""


_SAME = (  # what tools call the same thing
    ("lora_r", "lora_rank", "r"),
    ("sequence_len", "cutoff_len", "max_seq_len", "max_length", "sequence_length"),
    ("base_model", "model_name_or_path", "model"),
    ("micro_batch_size", "per_device_train_batch_size", "batch_size"),
    ("num_epochs", "num_train_epochs", "epochs"),
    ("datasets", "dataset", "train_dataset"),
    ("val_set_size", "val_size"),
    ("optimizer", "optim"),
    ("lr_scheduler", "lr_scheduler_type"),
    ("learning_rate", "lr"),
    ("train_on_inputs", "train_on_prompt"),
    ("chat_template", "template"),
    ("max_grad_norm", "clip_grad_norm"),
    ("lora_target_modules", "lora_target", "target_modules"),
    ("lora_modules_to_save", "additional_target", "modules_to_save"),
)


class Blocked(Exception):
    """The run that the file describes is none that Luthier can do; the message is the reason."""


class Draft:
    """Collects Luthier's keys and the findings about the source's.

    `given` holds the keys of the source that have a value: a key with `null` counts as absent everywhere.
    """

    def __init__(self, tool: str, source: Source, *, processes: int = 1, rows: Sequence[str] = ()):
        self.tool = tool
        self.given = {key: value for key, value in source.values.items() if value is not None}
        self.processes = processes
        """How many processes the source's run had; the file itself does not say it."""
        self.rows = list(rows)
        """What to train on instead of the file's own data sets."""
        self.values: dict[str, Any] = {}
        self.notes: dict[str, list[str]] = {}
        self.findings: list[Finding] = []
        self.reasons: dict[str, list[str]] = {}
        """Why there is no result, each with the keys that it holds for."""
        self._places = source.places

    def get(self, key: str, read: Callable[[Any], Any], default: Any = None) -> Any:
        """The value of a key, or the default where it is absent or cannot be read (then it is listed)."""
        if self.given.get(key) is None:
            return default
        try:
            return read(self.given[key])
        except Misread as error:
            self.find(key, Kind.UNKNOWN, f"{error}; it is left out")
            return default

    def put(self, target: str, value: Any, note: str = "") -> None:
        """Sets Luthier's key, with a comment for it."""
        here = self.values
        *sections, last = target.split(".")
        for name in sections:
            here = here.setdefault(name, {})
        here[last] = value
        self.note(target, note)

    def has(self, target: str) -> bool:
        """Whether Luthier's key, or any below it, is set."""
        here: Any = self.values
        for name in target.split("."):
            if not isinstance(here, dict) or name not in here:
                return False
            here = here[name]
        return True

    def note(self, target: str, note: str) -> None:
        """A comment that is written above Luthier's key."""
        if note and note not in self.notes.setdefault(target, []):
            self.notes[target].append(note)

    def find(self, key: str, kind: Kind, text: str, target: str | None = None) -> None:
        """Says what became of a key."""
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        known = self._places.of_key.get(path) or self._places.find(path)
        found = Finding(key, kind, text, target, known.line)
        if found not in self.findings:
            self.findings.append(found)

    def map(self, key: str, target: str, value: Any, note: str = "") -> None:
        """Sets Luthier's key from a key of the source."""
        self.put(target, value, note)
        self.find(key, Kind.NOTED if note else Kind.MAPPED, note, target)

    def needless(self, key: str, text: str) -> None:
        """The key changes nothing."""
        self.find(key, Kind.NEEDLESS, text)

    def none(self, key: str, text: str) -> None:
        """The key has no counterpart."""
        self.find(key, Kind.NONE, text)

    def block(self, key: str, text: str) -> None:
        """The key asks for a run that Luthier cannot do."""
        self.find(key, Kind.NONE, text)
        self.reasons.setdefault(text, []).append(key)

    def run_table(self, table: dict[str, Rule], known: Iterable[str] = ()) -> None:
        """Applies a rule to every key that is given; a key without one is not understood."""
        every = [*table, *known]
        for key, value in self.given.items():
            if key in table:
                try:
                    table[key](self, key, value)
                except Misread as error:
                    self.find(key, Kind.UNKNOWN, f"{error}; it is left out")
            elif key not in known:
                self.unknown(key, every)

    def unknown(self, key: str, known: Iterable[str]) -> None:
        """A key that the tool does not have."""
        word, names = key.rpartition(".")[2], list(known)
        others = [other for group in _SAME if word in group for other in group if other in names]
        hint = f"; did you mean {others[0]}?" if others else did_you_mean(word, names)
        self.find(key, Kind.UNKNOWN, f"{self.tool} has no such key{hint}")

    def unreadable(self, fault: Fault) -> None:
        """What YAML itself left unclear: a key that is given twice, a tag without a meaning."""
        text = (
            f"{fault.text} (of a key given twice, the last one counts)"
            if "twice" in fault.text
            else fault.text
        )
        self.findings.append(Finding("(file)", Kind.UNKNOWN, text, None, fault.place.line))

    def put_rows(self, key: str) -> bool:
        """Sets `data.path` to the rows that were given instead of the file's; whether there are any."""
        if not self.rows:
            return False
        self.put("data.path", self.rows[0] if len(self.rows) == 1 else self.rows, "given with --data")
        if key in self.given:
            self.needless(key, "other rows were given with --data")
        return True

    def done(self, file: str) -> Imported:
        """The result. Raises Blocked with every reason why there is none."""
        if self.reasons:
            reasons = (f"{', '.join(dict.fromkeys(keys))}: {text}" for text, keys in self.reasons.items())
            raise Blocked("; ".join(reasons))
        said = {finding.key.partition(".")[0] for finding in self.findings}
        lost = set(self.given) - said
        if lost:
            raise AssertionError(f"nothing was said about {', '.join(sorted(lost))}")
        last = 10**9
        order = sorted(self.findings, key=lambda finding: finding.line or last)
        return Imported(self.tool, file, self.values, order, self.notes)
