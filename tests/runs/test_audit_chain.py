"""The audit chain: any byte that changes is seen; a killed writer breaks nothing."""

import getpass
import json
import platform
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.runs.audit import (
    FIRST,
    append,
    hash_file,
    hash_files,
    hash_text,
    read_audit,
    verify,
    verify_content,
    verify_run,
)
from luthier.runs.folder import RunFolder

details = st.dictionaries(
    st.text(max_size=6),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@settings(max_examples=40)
@given(st.lists(details, max_size=5))
def test_what_is_appended_verifies_and_reads_back(content: list[dict]) -> None:
    with TemporaryDirectory() as place:
        path = Path(place, "audit.jsonl")
        hashes = [append(path, "checkpoint", detail) for detail in content]
        found = read_audit(path)
        assert [entry["detail"] for entry in found] == content
        assert [entry["hash"] for entry in found] == hashes
        assert [entry["previous"] for entry in found] == [FIRST, *hashes][: len(hashes)]
        assert verify(path) == ([] if content else ["audit.jsonl is missing"])


def chain(path: Path) -> bytes:
    append(path, "started", {"config": "ab12", "steps": 3, "lr": 2e-4})
    append(path, "network", {"host": "huggingface.co", "purpose": "model"})
    append(path, "finished", {"note": "é", "list": [1, True, None]})
    return path.read_bytes()


def test_every_byte_counts(tmp_path: Path) -> None:
    """Each byte of a chain, replaced by several others, removed or doubled: always seen."""
    path = tmp_path / "audit.jsonl"
    whole = chain(path)
    assert verify(path) == verify_content(whole) == []
    for place, byte in enumerate(whole):
        changed = [whole[:place] + bytes([byte ^ flip]) + whole[place + 1 :] for flip in (1, 2, 16, 32, 128)]
        changed.append(whole[:place] + whole[place + 1 :])
        changed.append(whole[: place + 1] + whole[place:])
        changed.append(whole[:place] + b" " + whole[place:])
        for other in changed:
            if other == whole:
                continue
            assert verify_content(other), (
                f"byte {place} ({byte:#x}): {other[max(0, place - 20) : place + 20]!r}"
            )


def test_lines_cannot_be_moved_removed_added_or_rehashed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    first, second, third = chain(path).splitlines(keepends=True)
    forged = json.loads(second)
    forged["detail"]["host"] = "example.org"
    without = {name: value for name, value in forged.items() if name != "hash"}
    forged["hash"] = hash_text(json.dumps(without, sort_keys=True, separators=(",", ":")))
    forged_line = json.dumps(forged, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    for content, says in [
        (second + first + third, "line 1 (network) does not follow the line before it"),
        (first + third, "line 2 (finished) does not follow"),
        (second + third, "line 1 (network) does not follow"),
        (first + first + second + third, "line 2 (started) does not follow"),
        (first + forged_line + third, "line 3 (finished) does not follow"),
        (first + second.replace(b"huggingface", b"huggingfave") + third, "line 2 (network) was changed"),
        (first + b"{}\n" + third, "line 2 is not an audit line"),
        (first + second[:-9], "line 2 was cut"),
        (b"", "audit.jsonl is empty"),
    ]:
        path.write_bytes(content)
        assert any(problem.startswith(says) for problem in verify(path)), (says, verify(path))


def test_a_line_that_was_cut_is_mended_and_the_chain_says_so(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    whole = chain(path)
    for cut in range(1, len(whole.splitlines()[-1]), 7):
        path.write_bytes(whole[: -1 - cut])
        assert verify(path)
        append(path, "resumed", {"step": 3})
        assert verify(path) == []
        events = [entry["event"] for entry in read_audit(path)]
        assert events == ["started", "network", "mended", "resumed"]
    path.write_bytes(whole[:-1])
    append(path, "resumed")
    assert [entry["event"] for entry in read_audit(path)] == ["started", "network", "finished", "resumed"]


def test_after_a_broken_line_the_chain_goes_on_and_still_tells(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(chain(path) + b"nonsense\n")
    append(path, "resumed")
    assert verify(path) == ["line 4 is not an audit line, or was written differently"]


def test_numbers_as_keys_and_lone_surrogates_pass(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    append(path, "checkpoint", {"rows": {9: 1, 10: 2}, "text": "\ud800"})
    assert verify(path) == []
    with pytest.raises(ValueError, match="JSON compliant"):
        append(path, "failed", {"loss": float("nan")})
    assert verify(path) == []


def test_nobody_is_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    append(path, "started")
    (entry,) = read_audit(path)
    assert set(entry) == {"time", "event", "detail", "previous", "hash"} and entry["detail"] == {}
    assert entry["time"].endswith("+00:00")
    assert getpass.getuser() not in entry["time"] and platform.node() not in path.read_text()


def finished_run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path, "a", config_yaml="seed: 0\n")
    append(folder.audit, "started", {"config": hash_file(folder.config)})
    folder.adapter.mkdir()
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    append(folder.audit, "files", {"files": hash_files(folder.path, [folder.adapter, folder.config])})
    append(folder.audit, "finished")
    folder.set_status("done", step=3)
    return folder


def test_a_run_is_compared_with_its_chain(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    assert verify_run(folder.path) == []
    weights = folder.adapter / "adapter_model.safetensors"
    weights.write_bytes(b"Weights")
    assert verify_run(folder.path) == ["adapter/adapter_model.safetensors was changed after the run wrote it"]
    weights.unlink()
    assert verify_run(folder.path) == [
        "adapter/adapter_model.safetensors was written by the run and is missing"
    ]


def test_a_changed_config_and_a_chain_without_its_end_are_seen(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    folder.audit.write_bytes(b"".join(folder.audit.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify_run(folder.path) == [
        "the run is done, but the chain does not say so: lines are missing at its end"
    ]
    folder.config.write_text("seed: 1\n")
    assert "config.yaml is not the one that the run was started with" in verify_run(folder.path)


def test_a_file_that_was_written_again_counts_as_it_is_last(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"better")
    append(folder.audit, "files", {"files": hash_files(folder.path, [folder.adapter])})
    assert verify_run(folder.path) == []
