"""Is it an NVMe qualified name, by SPDK's rules?"""

from __future__ import annotations

import re
import uuid as uuids

DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"
_UUID_PREFIX = "nqn.2014-08.org.nvmexpress:uuid:"
_FORM = re.compile(r"nqn\.[0-9]{4}-[0-9]{2}\.(?P<domain>[^:]+):.+", re.DOTALL)
_LABEL = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def is_valid(nqn: str) -> bool:
    if not 11 <= len(nqn.encode()) <= 223:
        return False
    if nqn == DISCOVERY:
        return True
    if nqn.startswith(_UUID_PREFIX):
        try:
            return len(nqn) == len(_UUID_PREFIX) + 36 and bool(uuids.UUID(nqn[len(_UUID_PREFIX) :]))
        except ValueError:
            return False
    form = _FORM.fullmatch(nqn)
    return form is not None and all(_LABEL.fullmatch(label) for label in form["domain"].split("."))
