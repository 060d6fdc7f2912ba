"""One guest for all tests of this directory, with the cards that they need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from lab.vm import devices
from lab.vm.guest import Guest, Parts
from tests.vm.machine import LOOK, NODE, PREPARE, Machine

NQN = "nqn.2019-08.org.qemu:lab"
DISK_UUID = "6f1c5ac2-0d6e-4c1f-9a57-3d1f0a7c2b11"
DISK_SIZE = 64 << 20
FREE_SLOT = 4


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def machine() -> AsyncIterator[Machine]:
    cards = (
        devices.iommu(),
        devices.root_ports(count=5),
        devices.igb(1),
        devices.igb(2),
        devices.subsystem("sub", nqn=NQN),
        devices.nvme(3, serial="built-in", size=DISK_SIZE, uuid=DISK_UUID, subsystem="sub"),
    )
    async with Guest(
        await Parts.prepare(),
        name="tests",
        devices=cards,
        kernel="ignore_loglevel sysctl.kernel.hung_task_timeout_secs=15",
    ) as guest:
        machine = Machine(guest)
        await machine.load(PREPARE, LOOK, NODE)
        yield machine
