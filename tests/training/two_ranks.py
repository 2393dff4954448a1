"""Run by torchrun from test_loop.py: four steps on this rank's share; rank 0 saves weights, losses and norms."""

import sys
from datetime import timedelta

import torch

from luthier.parallel.cluster import join_cluster

sys.path.insert(0, str(__import__("pathlib").Path(__file__).resolve().parents[1]))
from training.test_loop import settings
from training_parts import make_trainer, trained_weights

if __name__ == "__main__":
    torch.set_num_threads(1)
    packs, out = sys.argv[1:]
    cluster = join_cluster("cpu", timedelta(seconds=60))
    trainer = make_trainer(cluster=cluster, **settings(packs))
    reports = [trainer.step(trainer.source.step(i)).values for i in range(4)]
    if cluster.is_main:
        numbers = {name: [values[name] for values in reports] for name in ("loss", "grad_norm")}
        torch.save({"weights": trained_weights(trainer), **numbers}, out)
    cluster.close()
