"""OVN's central part: northbound and southbound databases with ovn-northd between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from foundation.ovsdb import OvsdbSession
from foundation.ovsdb import operations as op
from lab import processes
from lab.network.commands import run

SCHEMAS = Path("/usr/share/ovn")
START_SECONDS = 20.0

Record = Callable[[processes.ProcessRecord], None]


class Central:
    """Lives in the root network namespace and serves unix sockets, which nodes reach across namespaces."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nb = f"unix:{directory}/nb.sock"
        self.sb = f"unix:{directory}/sb.sock"

    def environment(self) -> dict[str, str]:
        """What makes OVN's command line tools and daemons keep to this directory."""
        text = str(self.directory)
        names = ("OVN_RUNDIR", "OVN_LOGDIR", "OVN_DBDIR", "OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR")
        return dict.fromkeys(names, text)

    def _start_database(self, name: str, record: Record) -> None:
        record(
            processes.start(
                f"ovn-{name}",
                [
                    "ovsdb-server",
                    f"--remote=punix:{self.directory}/{name}.sock",
                    f"--unixctl={self.directory}/{name}.ctl",
                    f"--log-file={self.directory}/{name}.log",
                    "-vconsole:off",
                    self.directory / f"{name}.db",
                ],
                logs=self.directory,
                environment=self.environment(),
            )
        )

    async def start(self, record: Record) -> None:
        """Returns when both databases hold their global row and northd copies between them."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in ("nb", "sb"):
            await run("ovsdb-tool", "create", self.directory / f"{name}.db", SCHEMAS / f"ovn-{name}.ovsschema")
            self._start_database(name, record)
        nb, sb = OvsdbSession(self.nb, "OVN_Northbound"), OvsdbSession(self.sb, "OVN_Southbound")
        sb.monitor({"SB_Global": ["nb_cfg"]})
        await asyncio.gather(nb.start(deadline=START_SECONDS), sb.start(deadline=START_SECONDS))
        try:
            await sb.transact(op.insert("SB_Global", {}))
            await nb.transact(op.insert("NB_Global", {"options": {"northd_probe_interval": "0"}, "nb_cfg": 1}))
            record(
                processes.start(
                    "ovn-northd",
                    [
                        "ovn-northd",
                        f"--ovnnb-db={self.nb}",
                        f"--ovnsb-db={self.sb}",
                        f"--unixctl={self.directory}/northd.ctl",
                        f"--log-file={self.directory}/northd.log",
                        "-vconsole:off",
                    ],
                    logs=self.directory,
                    environment=self.environment(),
                )
            )
            # northd copies the sequence number once it has worked through everything before it.
            await sb.until("SB_Global", lambda row: bool(row["nb_cfg"] >= 1), deadline=START_SECONDS)
        finally:
            await asyncio.gather(nb.stop(), sb.stop())
