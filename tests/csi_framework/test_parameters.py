"""StorageClass and VolumeAttributesClass parameters: every accepted form, and the words of every refusal."""

import pytest

from csi.errors import InvalidArgument
from csi.framework import parameters
from csi.framework.backend import Qos
from csi.framework.backends.spdk.config import SpdkParameters


def test_all_keys_are_typed() -> None:
    common, special = parameters.parse(
        {
            "backend": "spdk",
            "functionPolicy": "shared",
            "encryption": "true",
            "pool": "a, b",
            "provisioning": "thick",
            "csi.storage.k8s.io/pvc/name": "claim",
        },
        SpdkParameters,
    )
    assert (common.backend, common.function_policy, common.encryption, common.authentication) == (
        "spdk",
        "shared",
        True,
        False,
    )
    assert special.pools == ("a", "b")
    assert special.provisioning == "thick"


def test_nothing_given_gives_defaults() -> None:
    common, special = parameters.parse({}, SpdkParameters)
    assert common == parameters.ClassParameters()
    assert special == SpdkParameters()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pol": "x"}, "did you mean 'pool'?"),
        ({"provisoning": "thin"}, "did you mean 'provisioning'?"),
        ({"FunctionPolicy": "shared"}, "did you mean 'functionPolicy'?"),
        ({"zzzzzz": ""}, "known: authentication, backend"),
        ({"encryption": "ja"}, "encryption"),
        ({"provisioning": "fat"}, "provisioning"),
        ({"functionPolicy": ""}, "functionPolicy"),
        ({"ключ": "1"}, "unknown"),
        ({"k" * 300: "1"}, "unknown"),
    ],
)
def test_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match="StorageClass parameter") as caught:
        parameters.parse(given, SpdkParameters)
    assert words in str(caught.value)


def test_limits() -> None:
    assert parameters.parse_qos({"readWriteIops": "3000", "readMbPerSecond": "10"}) == Qos(
        read_write_iops=3000, read_mb_per_second=10
    )
    assert parameters.parse_qos({}) == Qos()


@pytest.mark.parametrize(
    "given",
    [
        {"iops": "1"},
        {"readWriteIops": "-1"},
        {"readWriteIops": "1.5"},
        {"readWriteIops": "many"},
        {"readWriteIops": "9" * 30},
    ],
)
def test_limits_refused(given: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="VolumeAttributesClass parameter"):
        parameters.parse_qos(given)
