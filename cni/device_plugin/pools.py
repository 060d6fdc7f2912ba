"""Which pool each function belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cni.device_plugin import cdi
from cni.device_plugin.candidates import Candidate, Device
from cni.device_plugin.config import Pool
from cni.device_plugin.errors import BadSelector
from cni.device_plugin.health import suits, verdict
from cni.device_plugin.selectors import Matcher

# How well a pool fits a function; between equals the first pool wins.
_NOT, _BY_PLACE, _FULLY = 0, 1, 2
_NATIVE = "kubernetes.io/"


class Pools:
    """The declared pools in order, with the functions that each once had. Raises BadSelector."""

    def __init__(self, pools: Sequence[Pool], *, domain: str) -> None:
        self._pools = {resource_name(pool.name, domain=domain): pool for pool in pools}
        if len(self._pools) != len(pools):
            names = Counter(resource_name(pool.name, domain=domain) for pool in pools)
            twice = ", ".join(name for name, count in names.items() if count > 1)
            raise BadSelector(f"declared more than once: {twice}; give each resource one pool with several selectors")
        for name in self._pools:
            # kubelet's rule for extended resources: those domains are the orchestrator's own.
            if _NATIVE in name:
                raise BadSelector(f"{name}: kubelet takes no resource below kubernetes.io; name a domain of your own")
        kinds: dict[str, str] = {}
        for name, pool in self._pools.items():
            if not pool.cdi:
                continue
            if not cdi.is_kind(cdi.kind(name)):
                raise BadSelector(
                    f"{name}: a pool with cdi begins its domain and its name with a letter, as CDI demands"
                )
            if (other := kinds.setdefault(cdi.kind(name), name)) != name:
                raise BadSelector(f"{name} and {other} are both {cdi.kind(name)} to CDI; give one another name")
        self._matchers = {
            name: tuple(Matcher(selector) for selector in pool.selectors) for name, pool in self._pools.items()
        }
        self._members: dict[str, str] = {}

    @property
    def resources(self) -> Mapping[str, Pool]:
        """Pools by full resource name."""
        return self._pools

    def divide(self, candidates: Mapping[str, Candidate]) -> dict[str, tuple[Device, ...]]:
        """Devices by resource, in address order; every resource has an entry.

        A function keeps its pool while that still fits it but for the driver, so that one whose driver was unbound
        turns unhealthy instead of vanishing.
        """
        members = {}
        for address, candidate in candidates.items():
            resource = self._pool_of(candidate, self._members.get(address, ""))
            if resource:
                members[address] = resource
        self._members = members
        for_machines = {address for address, resource in members.items() if self._pools[resource].use == "vfio"}
        divided: dict[str, list[Device]] = {resource: [] for resource in self._pools}
        for address in sorted(members):
            resource, candidate = members[address], candidates[address]
            reason = verdict(candidate, self._pools[resource], advertised=for_machines)
            divided[resource].append(Device(candidate, resource, reason))
        return {resource: tuple(devices) for resource, devices in divided.items()}

    def _pool_of(self, candidate: Candidate, earlier: str) -> str:
        best, found = _NOT, ""
        for resource in self._pools:
            fit = self._fit(candidate, resource, is_member=resource == earlier)
            if fit > best or (fit == best != _NOT and resource == earlier):
                best, found = fit, resource
        return found

    def _fit(self, candidate: Candidate, resource: str, *, is_member: bool) -> int:
        driver, use = candidate.function.driver, self._pools[resource].use
        fit = _NOT
        for matcher in self._matchers[resource]:
            if not matcher.matches(candidate):
                continue
            if matcher.takes_driver(driver):
                fit = max(fit, _FULLY if suits(driver, use) else _BY_PLACE)
            elif not driver or is_member:
                fit = max(fit, _BY_PLACE)
        return fit


def resource_name(name: str, *, domain: str) -> str:
    """`vf` -> `dpu-offload.io/vf`; a name with a domain of its own stays."""
    return name if "/" in name else f"{domain}/{name}"
