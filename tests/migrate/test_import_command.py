"""`luthier import` from the command line: what it writes, what it says, how it ends."""

import json
import subprocess
import sys

import pytest

from luthier.cli.main import main
from luthier.config.load import load_config
from migrate_parts import small


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A configuration of Axolotl beside its rows, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    write(tmp_path, small("axolotl", datasets=[{"path": "rows.jsonl", "type": "alpaca"}]))
    return tmp_path


def write(folder, values):
    (folder / "theirs.yml").write_text(json.dumps(values))


def test_what_it_writes_passes_check(source, capsys):
    assert main(["import", "theirs.yml", "--output", "run.yaml"]) == 0
    assert "imported from Axolotl" in capsys.readouterr().out
    assert main(["check", "run.yaml"]) == 0
    assert capsys.readouterr().out.startswith("ok")


def test_without_a_file_the_standard_output_holds_the_configuration_alone(source, capsys):
    assert main(["import", "theirs.yml"]) == 0
    output = capsys.readouterr()
    (source / "out.yaml").write_text(output.out)
    assert load_config(source / "out.yaml").model.name == "owner/name"
    assert "base_model" in output.err and "still to do" not in output.err


def test_rows_that_are_not_here_are_told(source, capsys):
    (source / "rows.jsonl").unlink()
    assert main(["import", "theirs.yml", "--output", "run.yaml"]) == 0
    assert "still to do: data" in " ".join(capsys.readouterr().err.split())


def test_a_file_that_exists_is_kept(source, capsys):
    (source / "run.yaml").write_text("mine")
    assert main(["import", "theirs.yml", "--output", "run.yaml"]) == 2
    assert (source / "run.yaml").read_text() == "mine" and "--force" in capsys.readouterr().err
    assert main(["import", "theirs.yml", "--output", "run.yaml", "--force"]) == 0
    assert load_config(source / "run.yaml").model.name == "owner/name"


def test_strict_fails_if_anything_is_lost(source, capsys):
    values = small("axolotl", datasets=[{"path": "rows.jsonl", "type": "alpaca"}])
    assert main(["import", "theirs.yml", "--strict", "--output", "one.yaml"]) == 0
    write(source, values | {"tf32": True})
    assert main(["import", "theirs.yml", "--strict", "--output", "two.yaml"]) == 1
    assert "tf32" in capsys.readouterr().err and not (source / "two.yaml").exists()
    write(source, values | {"tf32": False})
    assert main(["import", "theirs.yml", "--strict", "--output", "three.yaml"]) == 0


def test_a_run_that_cannot_be_done_ends_with_one_and_writes_nothing(source, capsys):
    write(source, small("axolotl") | {"rl": "grpo"})
    assert main(["import", "theirs.yml", "--output", "run.yaml"]) == 1
    assert "rl: learns by reinforcement" in capsys.readouterr().err
    assert not (source / "run.yaml").exists()


@pytest.mark.parametrize("content", ["a: [", "just words", "", "\x00"])
def test_what_is_no_configuration_ends_with_two(source, content, capsys):
    (source / "theirs.yml").write_text(content)
    assert main(["import", "theirs.yml"]) == 2
    assert "theirs.yml" in capsys.readouterr().err
    assert main(["import", "nowhere.yml"]) == 2


def test_a_key_that_is_given_twice_is_told(source, capsys):
    text = (source / "theirs.yml").read_text().rstrip("}") + ', "seed": 1, "seed": 2}'
    (source / "theirs.yml").write_text(text)
    assert main(["import", "theirs.yml"]) == 0
    output = capsys.readouterr()
    assert "seed is given twice" in " ".join(output.err.split()) and "seed: 2" in output.out


def test_processes_multiply_the_tokens_of_a_step(source, capsys):
    main(["import", "theirs.yml", "--output", "one.yaml"])
    main(["import", "theirs.yml", "--output", "four.yaml", "--processes", "4"])
    one, four = (load_config(source / f"{name}.yaml").train.tokens_per_step for name in ("one", "four"))
    assert four == 4 * one


def test_no_torch_to_import(source):
    code = (
        "import sys\nfrom luthier.cli.main import main\nassert main(['import', 'theirs.yml']) == 0\n"
        "print('LOADED', *{'torch', 'transformers'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.rpartition("LOADED")[2].strip() == ""
