"""Backend kind `nvmet`: files or logical volumes of this machine, offered by the Linux kernel's own NVMe-oF target."""

from csi.framework.backend import BackendKind
from csi.framework.backends.nvmet.backend import NvmetBackend
from csi.framework.backends.nvmet.config import NvmetConfig, NvmetParameters

BACKEND = BackendKind(name="nvmet", configuration=NvmetConfig, parameters=NvmetParameters, open=NvmetBackend)
