"""Whose DPU must let go before it is let in, and whom no look at Kubernetes lets in again."""

from csi import identity
from csi.controller.fences import Fences

VOLUME, OTHER = (identity.VolumeId(backend="spdk", key=f"p0.v{letter * 20}") for letter in "ab")
HERE, THERE = identity.host_nqn("here"), identity.host_nqn("there")


def test_of_an_earlier_process_only_kubernetes_knows() -> None:
    fences = Fences(lambda volume: {HERE} if volume == VOLUME else set())
    # A machine that runs, whose target has lost its list: it must not lose its disk.
    assert not fences.suspect(VOLUME, HERE)
    assert fences.suspect(VOLUME, THERE)
    assert fences.suspect(OTHER, HERE)


def test_a_host_that_was_cut_off_is_suspect_until_its_dpu_has_let_go() -> None:
    # What Kubernetes says is older than the fence.
    fences = Fences(lambda _volume: {HERE})
    fences.cut(VOLUME, HERE)
    assert fences.suspect(VOLUME, HERE)
    fences.let_go(VOLUME, HERE)
    assert not fences.suspect(VOLUME, HERE)
    fences.cut(VOLUME, HERE)
    assert fences.suspect(VOLUME, HERE)


def test_a_fence_stands_until_a_call_lets_the_host_in() -> None:
    fences = Fences(lambda _volume: {HERE, THERE})
    fences.cut(VOLUME, HERE)
    fences.let_go(VOLUME, HERE)
    assert fences.stands(VOLUME, HERE)
    assert not fences.stands(VOLUME, THERE)
    assert not fences.stands(OTHER, HERE)
    fences.lift(VOLUME, HERE)
    assert not fences.stands(VOLUME, HERE)
    fences.let_go(VOLUME, HERE)
    assert not fences.stands(VOLUME, HERE)


def test_nothing_is_kept_of_a_volume_that_is_gone() -> None:
    fences = Fences(lambda _volume: ())
    fences.cut(VOLUME, HERE)
    fences.forget(VOLUME)
    assert not fences.stands(VOLUME, HERE)
