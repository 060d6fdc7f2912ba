"""Settings that cannot work are refused at the start, in words."""

import pytest

from foundation.daemon.configuration import ConfigurationError
from volume_attacher.app import check_shared_nqn
from volume_attacher.config import VolumeAttacherConfig

WRONG = ["nqn.2026-11.io.example:{bus}", "nqn.2026-11.io.example:{0}", "nqn.2026-11.io.example:{pf", "", "shared.{pf}"]


def test_the_default_makes_an_nqn() -> None:
    check_shared_nqn(VolumeAttacherConfig().shared_nqn)


@pytest.mark.parametrize("template", WRONG)
def test_a_template_that_makes_none_is_refused(template: str) -> None:
    with pytest.raises(ConfigurationError, match="shared_nqn"):
        check_shared_nqn(template)
