"""Which of a virtual machine's pods has its guest, and to which one the guest is moving. Pure.

KubeVirt runs a second virt-launcher pod while a machine migrates. The guest is in exactly one of them at any time, so
exactly one is the holder; a target only waits, until the guest announces itself there or KubeVirt says that it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cni.controller.model.vm import Progress


@dataclass(frozen=True, slots=True)
class Launcher:
    """A virt-launcher pod that has a node and has not finished. `job`: the migration it is the target of, if any.

    `ready`: KubeVirt has noted on the pod that the guest runs there. `created`: RFC 3339.
    """

    key: str
    node: str
    created: str = ""
    leaving: bool = False
    job: str = ""
    ready: bool = False


class Placement(NamedTuple):
    """`target`: where the guest may turn up next."""

    holder: Launcher
    target: Launcher | None = None


def place(
    launchers: Iterable[Launcher], *, migrations: Mapping[str, Progress], runs_on: str = "", latest: str = ""
) -> Placement | None:
    """None when no pod is left. `migrations`: by uid, as far as known. `runs_on`: the node that KubeVirt names, with
    `latest`, the uid of the latest migration.

    | pods, oldest first                         | holder | target |
    |--------------------------------------------|--------|--------|
    | one, whatever it is                        | it     |        |
    | source, target of a running migration      | source | target |
    | ... that has succeeded, or is noted ready  | target |        |
    | ... that has failed, or was cancelled      | source |        |
    | ... whose pod is being deleted             | source |        |
    | former target, target of the next one      | former | target |
    | only targets of migrations that failed     | newest |        |

    The newest pod that has got the guest keeps it; a pod of which nothing is known yet has not got it. Kubernetes tells
    ages in whole seconds: of two pods of one second the latest migration's is newer, then the one that is to stay.
    """

    def age(each: Launcher) -> tuple[str, bool, bool, bool, str]:
        return each.created, bool(latest) and each.job == latest, not each.leaving, bool(each.job), each.key

    alive = sorted(launchers, key=age)
    if not alive:
        return None

    def failed(each: Launcher) -> bool:
        return bool(each.job) and migrations.get(each.job) is Progress.FAILED

    def has_guest(each: Launcher) -> bool:
        if not each.job:
            return True
        progress = migrations.get(each.job)
        if progress is None:
            # An earlier migration, whose object is gone.
            return each.ready or each.node == runs_on
        return progress is Progress.READY or (each.ready and progress is not Progress.FAILED)

    holders = [each for each in alive if has_guest(each)]
    if not holders:
        return Placement(([each for each in alive if not failed(each)] or alive)[-1])
    holder = holders[-1]
    waiting = [each for each in alive if each not in holders and each.created >= holder.created]
    return Placement(holder, next((each for each in reversed(waiting) if not failed(each) and not each.leaving), None))
