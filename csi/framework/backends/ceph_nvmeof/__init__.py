"""Backend kind `ceph-nvmeof`: RBD images, offered by a group of Ceph's NVMe-oF gateways."""

from csi.framework.backend import BackendKind
from csi.framework.backends.ceph_nvmeof.backend import CephBackend
from csi.framework.backends.ceph_nvmeof.config import CephConfig, CephParameters

BACKEND = BackendKind(name="ceph-nvmeof", configuration=CephConfig, parameters=CephParameters, open=CephBackend)
