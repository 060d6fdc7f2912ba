"""Checks of what lies between machines: certificates, clocks, reachability."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Final

from dpuctl.doctor.check import Check, Finding, View

SOON_SECONDS: Final = 7 * 86400
SKEW_SECONDS: Final = 2.0
_HEARTBEATS: Final = "kube-node-lease"


def _certificates(view: View) -> Iterator[Finding]:
    for machine in view.machines:
        for one in machine.certificates:
            where = f"{one.daemon} on {one.node or machine.name}"
            if one.problem:
                yield Finding(
                    where=where,
                    problem=f"certificate {one.file}: {one.problem}",
                    cure="renew it (cert-manager: kubectl cert-manager renew; otherwise write new files in place); the "
                    "daemon reads them by itself, no restart",
                )
            elif one.expires and one.expires - view.now < SOON_SECONDS:
                left = max(0.0, (one.expires - view.now) / 86400)
                yield Finding(
                    where=where,
                    problem=f"certificate {one.file} expires in {left:.1f} days",
                    cure="see why it was not renewed: cert-manager renews at two thirds of the lifetime",
                    severity="warning",
                )


def _clocks(view: View) -> Iterator[Finding]:
    cure = "run chrony or systemd-timesyncd on it; certificates and leases need clocks within seconds"
    for machine in view.machines:
        if abs(machine.skew) > SKEW_SECONDS:
            ahead = "ahead of" if machine.skew > 0 else "behind"
            yield Finding(
                where=f"machine {machine.name}",
                problem=f"its clock is {abs(machine.skew):.1f} s {ahead} this one's",
                cure=cure,
            )
    for lease in view.cluster.leases:
        if lease.metadata.namespace != _HEARTBEATS or not lease.spec.renew_time:
            continue
        try:
            renewed = datetime.datetime.fromisoformat(lease.spec.renew_time.replace("Z", "+00:00")).timestamp()
        except ValueError:
            continue
        if renewed - view.now > SKEW_SECONDS:
            yield Finding(
                where=f"node {lease.metadata.name}",
                problem=f"its clock is {renewed - view.now:.1f} s ahead: its heartbeat comes from the future",
                cure=cure,
            )


def _reach(view: View) -> Iterator[Finding]:
    for machine in view.machines:
        for one in machine.dials:
            if one.problem:
                yield Finding(
                    where=f"{one.daemon} on {one.node or machine.name}",
                    problem=f"cannot reach {one.server_name} at {one.endpoint}: {one.problem}",
                    cure="see that the daemon there runs, that no firewall lies between, and that `advertise` names an "
                    "address which this side reaches",
                )


CHECKS = (
    Check("certificates", "certificates are valid, rightly named and not about to expire", _certificates),
    Check("clocks", "the machines agree on the time", _clocks),
    Check("reachability", "hosts reach their DPUs, csi-controller reaches all of them", _reach),
)
