"""What a reviewer found to end in a traceback, or to be told too late."""

from pathlib import Path

import pytest

from luthier.cli.main import main
from luthier.config.plugins import load_plugin
from luthier.errors import ConfigError
from luthier.runs.folder import RunFolder


def test_a_method_file_that_does_not_run(tmp_path: Path) -> None:
    import luthier.methods

    file = tmp_path / "mine.py"
    file.write_text("class Mine(:")
    with pytest.raises(ConfigError, match=r"mine\.py cannot be imported: SyntaxError"):
        load_plugin(luthier.methods, str(file))


def test_a_root_where_no_folder_can_be_made() -> None:
    with pytest.raises(ConfigError, match=r"/proc/luthier/run cannot be made: .*Change run\.root"):
        RunFolder.create("/proc/luthier", "run", config_yaml="")


def test_check_knows_metrics_and_demos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "x.jsonl"
    data.write_text("{}\n")
    settings = [f"data={{path: {data}, eval_rows: 1}}", "eval.metrics=[exact_mach]", "model=demo:smollm"]
    assert main(["check", *settings]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'exact_match'" in said and "there is no demo model 'demo:smollm'" in said


def test_more_threads_than_cores_are_refused() -> None:
    from luthier.training.build import _set_threads

    with pytest.raises(ConfigError, match=r"train\.threads is 1000000, but this process may use \d+ cores"):
        _set_threads(1_000_000)
