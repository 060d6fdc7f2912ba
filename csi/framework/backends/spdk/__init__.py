"""Backend kind `spdk`: logical volumes of SPDK targets, each exported as an NVMe-oF subsystem of its own."""

from csi.framework.backend import BackendKind
from csi.framework.backends.spdk.backend import SpdkBackend
from csi.framework.backends.spdk.config import SpdkConfig, SpdkParameters

BACKEND = BackendKind(name="spdk", configuration=SpdkConfig, parameters=SpdkParameters, open=SpdkBackend)
