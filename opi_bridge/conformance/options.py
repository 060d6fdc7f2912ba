"""The conformance suite's command-line options, as a pytest plugin.

The distribution registers it under the entry point group pytest11, because pytest reads no conftest.py of a package
named by --pyargs before it has parsed its options.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("OPI bridge conformance")
    group.addoption("--target", default="", help="HOST:PORT or unix:/path of the OPI bridge to be tested")
    group.addoption("--function", default="0.1", help="a free PCI function of its card, PF.VF")
