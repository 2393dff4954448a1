"""Files that lie elsewhere: their tokens are named without fetching them, and anew when they change."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.config.data_section import SetSection
from luthier.data.pipeline import Plan
from luthier.data.prepare import entry_key
from luthier.data.sources import Source, hub
from luthier.data.sources.files import LocalFile
from luthier.data.sources.one_set import RowSet
from luthier.data.sources.remote import RemoteFile
from luthier.training import rows


def source_of(*files: LocalFile | hub.HubFile | RemoteFile) -> Source:
    return Source([RowSet(list(files), "given", None, None, 1.0, 1, (0, 0))])


@pytest.mark.parametrize("whole", [False, True])
def test_the_names_of_tokens_fetch_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    def fetch(*arguments: object) -> str:
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr(hub, "_fetch", fetch)
    local = tmp_path / "a.jsonl"
    local.write_text('{"text": "a"}\n')
    plan = Plan((SetSection(path="given"),), None)
    keys, hashes = set(), set()
    for commit in ("one", "two"):
        source = source_of(
            LocalFile(str(local), "lines"), hub.HubFile("org/name", "b.jsonl", commit, 7, False)
        )
        keys.add(entry_key(plan, source, whole=whole))
        monkeypatch.setattr(rows, "open_source", lambda *_, made=source, **__: made)
        data = SimpleNamespace(all_sets=(), eval_sets=())
        made = rows.data_hashes(SimpleNamespace(data=data, offline=False))  # pyright: ignore
        assert list(made) == ["0:a.jsonl", "1:hf:org/name/b.jsonl"]
        hashes.add(tuple(made.values()))
    assert len(keys) == len(hashes) == 2


def test_a_file_behind_a_url_that_changed_has_other_tokens() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    plan, keys = Plan((SetSection(path="given"),), None), []
    try:
        for content in (b'{"text": "a"}\n', b'{"text": "b"}\n'):
            memory.pipe_file("/elsewhere/a.jsonl", content)
            source = source_of(RemoteFile("memory://elsewhere/a.jsonl", "lines", "", len(content)))
            keys += [entry_key(plan, source), entry_key(plan, source)]
    finally:
        memory.rm("/elsewhere", recursive=True)
    assert keys[0] == keys[1] and keys[2] == keys[3] and keys[0] != keys[2]
