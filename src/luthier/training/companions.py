"""The other models of a run: what the method compares with, and what it learns from."""

from dataclasses import dataclass

from luthier.config.tree import Config
from luthier.methods.base import Method
from luthier.models.cross_teacher import AnyTeacher
from luthier.models.policy import Policy
from luthier.models.reference import Reference
from luthier.parallel.cluster import Cluster
from luthier.training.reference import build_reference
from luthier.training.rows import Data, Say
from luthier.training.teacher import build_teacher


@dataclass(frozen=True)
class Companions:
    """Reference and teacher, each None where the method has none."""

    reference: Reference | None
    teacher: AnyTeacher | None
    data: Data
    """The rows; where one of the two was asked beforehand, they bring along what it said."""
    notes: list[str]
    """What a person should know about them."""


def build_companions(
    config: Config, policy: Policy, method: Method, data: Data, *, often: bool, cluster: Cluster, say: Say
) -> Companions:
    """Both, before the first update. See `build_reference` and `build_teacher`."""
    reference, data, notes = build_reference(
        config, policy, method, data, often=often, cluster=cluster, say=say
    )
    teacher, data, more = build_teacher(config, policy, method, data, cluster=cluster, say=say)
    return Companions(reference, teacher, data, notes + more)
