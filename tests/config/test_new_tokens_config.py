"""How new tokens may be written in a config, and what is told about ways that cannot work."""

from typing import Any

import pytest

from luthier.config import config_from_dict
from luthier.config.dump import config_values, dump_config
from luthier.errors import ConfigError


def config_with(tokens: Any) -> Any:
    return config_from_dict({"model": {"name": "x/y", "new_tokens": tokens}, "data": "a.jsonl"})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["<a>", "<b>"], {"<a>": "", "<b>": ""}),
        ({"<a>": "words", "<b>": ""}, {"<a>": "words", "<b>": ""}),
        ([], {}),
        (None, {}),
    ],
)
def test_a_list_or_tokens_with_words(written: Any, meant: dict[str, str]) -> None:
    config = config_with(written)
    assert config.model.new_tokens == meant
    assert config_with(config_values(config)["model"]["new_tokens"]) == config
    assert all(token in dump_config(config) for token in meant)


@pytest.mark.parametrize("tokens", ["<a>", 5, [3], [""], [" <a>"], {"<a>\n": ""}, {"<a>": 3}, {"<a>": None}])
def test_what_cannot_be_a_token_is_told(tokens: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.new_tokens"):
        config_with(tokens)
