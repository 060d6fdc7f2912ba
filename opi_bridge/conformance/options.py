"""The conformance suite's command-line options, as a pytest plugin.

The distribution registers it under the entry point group pytest11, because pytest reads no conftest.py of a package
named by --pyargs before it has parsed its options.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("OPI bridge conformance")
    group.addoption("--target", default="", help="HOST:PORT or unix:/path of the OPI bridge to be tested")
    group.addoption("--target-ca", default="", help="PEM file of its authority; without, it is spoken to in clear text")
    group.addoption("--target-certificate", default="", help="PEM file of the client's certificate, for mutual TLS")
    group.addoption("--target-key", default="", help="PEM file of that certificate's key")
    group.addoption("--target-name", default="", help="the name in the bridge's certificate, if it is not HOST")
    group.addoption("--function", default="0.1", help="a free PCI function of its card, PF.VF")
