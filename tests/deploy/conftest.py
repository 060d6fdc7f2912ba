"""The manifests as objects, and the programs that users build them with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.deploy import shipped
from tests.deploy.shipped import KUSTOMIZE, PROFILES, ROOT, Body, documents


def _program(name: str) -> Path:
    built = ROOT / "build/bin" / name
    found = built if built.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: tools/setup --tests installs it where Go is")
    return Path(found)


@pytest.fixture(scope="session")
def helm() -> Path:
    return _program("helm")


@pytest.fixture(scope="session")
def kustomize() -> Path:
    return _program("kustomize")


@pytest.fixture(scope="session", params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def objects(profile: str) -> list[Body]:
    """Every object of one profile."""
    return documents(KUSTOMIZE / "overlays" / profile)


@pytest.fixture(scope="session")
def everything() -> list[Body]:
    return shipped.everything()
