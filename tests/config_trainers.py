"""From a config to a trainer, without a run's folder."""

from pathlib import Path

from luthier.config.tree import Config
from luthier.models.load import load_tokenizer
from luthier.parallel.cluster import Cluster
from luthier.training.build import build_data, build_trainer
from luthier.training.loop import Trainer
from luthier.training.template import build_template


def trainer_of(config: Config, folder: Path) -> Trainer:
    """The trainer of a config; tokens lie in `folder`."""
    tokenizer = load_tokenizer(config.model.name)
    cluster = Cluster()
    data = build_data(
        config, tokenizer, build_template(config, tokenizer), cluster, lambda line: None, folder
    )
    return build_trainer(config, data, cluster, lambda line: None)[0]
