"""The conformance suite's command-line options, as a pytest plugin.

The distribution registers it under the entry point group pytest11, because pytest reads no conftest.py of a package
named by --pyargs before it has parsed its options.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("storage backend conformance")
    group.addoption("--backend-section", help="YAML file: one section of csi-controller's `backends`, `kind` included")
    group.addoption("--backend-parameters", default="{}", help="StorageClass parameters of the backend, as YAML")
    group.addoption("--backend-volume-bytes", type=int, default=16 << 20, help="a small size it gives exactly")
