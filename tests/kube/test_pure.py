"""The pure parts: selectors, patches, back-off, decoding, line splitting."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.kube import patching
from foundation.kube.decoding import NESTING, Bookmark, ObjectDecoder, ObjectEvent, Unreadable
from foundation.kube.errors import Malformed
from foundation.kube.models.meta import LabelSelector, LabelSelectorRequirement
from foundation.kube.resources import ALL, CONFIG_MAPS, ENDPOINT_SLICES, NETWORK_POLICIES, PODS, Resource
from foundation.kube.selectors import InvalidSelector, matches, validate
from foundation.kube.sharing import Sharing
from foundation.kube.watching import Pace, lines
from lab.apiserver import patches
from lab.apiserver.selectors import by_labels

KEYS = st.sampled_from(["app", "tier", "x.io/y"])
VALUES = st.sampled_from(["", "a", "b", "c"])
LABELS = st.dictionaries(KEYS, VALUES)
REQUIREMENTS = st.one_of(
    st.builds(
        LabelSelectorRequirement,
        key=KEYS,
        operator=st.sampled_from(["In", "NotIn"]),
        values=st.lists(VALUES.filter(bool), min_size=1, max_size=3).map(tuple),
    ),
    st.builds(LabelSelectorRequirement, key=KEYS, operator=st.sampled_from(["Exists", "DoesNotExist"])),
)
SELECTORS = st.builds(
    LabelSelector,
    match_labels=st.one_of(st.none(), LABELS),
    match_expressions=st.one_of(st.none(), st.lists(REQUIREMENTS, max_size=3).map(tuple)),
)


def _text(selector: LabelSelector) -> str:
    """The selector as a query has it: another notation, read by the stand-in's own parser."""
    terms = [f"{key}={value}" for key, value in (selector.match_labels or {}).items()]
    for each in selector.match_expressions or ():
        inside = ",".join(each.values or ())
        terms.append(
            {
                "In": f"{each.key} in ({inside})",
                "NotIn": f"{each.key} notin ({inside})",
                "Exists": each.key,
                "DoesNotExist": f"!{each.key}",
            }[each.operator]
        )
    return ",".join(terms)


@given(selector=SELECTORS, labels=LABELS)
def test_selectors_agree_with_an_independent_reader(selector: LabelSelector, labels: dict[str, str]) -> None:
    predicate = by_labels(_text(selector))
    expected = True if predicate is None else predicate({"metadata": {"labels": labels}})
    assert matches(selector, labels) == expected


def test_an_absent_selector_matches_nothing_and_an_empty_one_all() -> None:
    assert not matches(None, {"a": "b"})
    assert matches(LabelSelector(), {})
    validate(None)


@pytest.mark.parametrize(
    ("requirement", "sentence"),
    [
        (LabelSelectorRequirement("a", "In"), "needs at least one value"),
        (LabelSelectorRequirement("a", "NotIn", ()), "needs at least one value"),
        (LabelSelectorRequirement("a", "Exists", ("b",)), "takes no values"),
        (LabelSelectorRequirement("a", "Near", ("b",)), "unknown operator 'Near'"),
    ],
)
def test_impossible_selectors_are_named(requirement: LabelSelectorRequirement, sentence: str) -> None:
    with pytest.raises(InvalidSelector, match=sentence):
        validate(LabelSelector(match_expressions=(requirement,)))


JSON = st.recursive(
    st.one_of(st.booleans(), st.integers(-3, 3), st.text("ab/~", max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text("ab/~", max_size=2), JSON, max_size=4)


@given(old=OBJECTS, new=OBJECTS)
def test_a_difference_leads_from_old_to_new(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = patching.merge_difference(old, new)
    assert patches.merge(old, patch) == new
    if old == new:
        assert patch == {}


@given(obj=OBJECTS, name=st.text("ab/~", max_size=3), value=JSON)
def test_a_pointer_finds_its_field(obj: dict[str, Any], name: str, value: Any) -> None:
    path = patching.pointer(name)
    done = patches.json_patch(obj, [patching.add(path, value), patching.test(path, value)])
    assert done[name] == value
    assert patches.json_patch(done, [patching.remove(path)]) == {k: v for k, v in obj.items() if k != name}


@pytest.mark.parametrize("resource", ALL, ids=lambda resource: resource.plural)
def test_every_model_reads_the_least_and_the_emptiest_object(resource: Resource[Any]) -> None:
    decoder = ObjectDecoder(resource)
    decoder.one(b'{"metadata":{"name":"a","unknown":{"x":[1]}},"unknown":1}', request="test")
    nulls = b'{"metadata":{"name":"a","creationTimestamp":null,"deletionTimestamp":null}}'
    assert decoder.one(nulls, request="test").metadata.name == "a"


def test_an_object_as_deep_as_the_server_takes_it_is_no_obstacle() -> None:
    deep = b"[" * (NESTING - 3) + b"]" * (NESTING - 3)
    body = b'{"metadata":{"name":"a","namespace":"ns","resourceVersion":"5"},"spec":{"odd":' + deep + b"}}"
    decoder = ObjectDecoder(PODS)
    (found,) = decoder.page(b'{"metadata":{},"items":[' + body + b"]}", request="test").items
    event = decoder.event(b'{"type":"ADDED","object":' + body + b"}")
    assert isinstance(event, ObjectEvent)
    assert event.object == found == decoder.one(body, request="test")
    odd = decoder.event(b'{"type":"ADDED","object":' + body.replace(b'"spec":{', b'"status":3,"spec":{') + b"}")
    assert isinstance(odd, Unreadable)
    assert odd.key == "ns/a"


def test_lists_that_arrive_as_null_are_absent() -> None:
    body = b'{"metadata":{"name":"a"},"addressType":"IPv4","endpoints":null,"ports":null}'
    assert ObjectDecoder(ENDPOINT_SLICES).one(body, request="test").endpoints is None
    page = ObjectDecoder(CONFIG_MAPS).page(b'{"metadata":{"resourceVersion":"5"},"items":null}', request="test")
    assert page.items == ()


def test_absent_and_empty_selectors_differ() -> None:
    body = b'{"metadata":{"name":"a"},"spec":{"podSelector":{},"ingress":[{"from":[{"podSelector":{}}]}]}}'
    policy = ObjectDecoder(NETWORK_POLICIES).one(body, request="test")
    assert policy.spec.ingress is not None
    assert policy.spec.ingress[0].from_ is not None
    peer = policy.spec.ingress[0].from_[0]
    assert (peer.pod_selector, peer.namespace_selector) == (LabelSelector(), None)


def test_bookmarks_of_a_typed_server_are_understood() -> None:
    line = (
        b'{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"12",'
        b'"creationTimestamp":null},"spec":{"containers":null},"status":{}}}'
    )
    assert ObjectDecoder(PODS).event(line) == Bookmark("12")


def test_a_page_keeps_the_good_among_the_bad() -> None:
    items = (b'{"metadata":{"name":"a"},"data":{"x":1}}', b'{"metadata":{"name":"b"}}', b"5")
    body = b'{"metadata":{"resourceVersion":"9"},"items":[%s]}' % b",".join(items)
    page = ObjectDecoder(CONFIG_MAPS).page(body, request="test")
    assert [each.metadata.name for each in page.items] == ["b"]
    assert [each.key for each in page.unreadable] == ["a", ""]
    assert page.metadata.resource_version == "9"
    for broken in (b"", b"[]", b'{"metadata":', b'{"metadata":5}'):
        with pytest.raises(Malformed):
            ObjectDecoder(CONFIG_MAPS).page(broken, request="test")


@given(
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20), max_size=8),
    cuts=st.lists(st.integers(1, 40), max_size=30),
)
def test_lines_are_found_however_the_network_cuts_them(names: list[str], cuts: list[int]) -> None:
    whole = [msgspec.json.encode(name) for name in names]
    stream = b"".join(line + b"\n" for line in whole)

    class Cut:
        def __init__(self) -> None:
            self.rest = stream + b'"half a line'
            self.cuts = iter(cuts)

        async def readany(self) -> bytes:
            cut = next(self.cuts, len(self.rest))
            chunk, self.rest = self.rest[:cut], self.rest[cut:]
            return chunk

        def hold(self, held: bool) -> None:
            raise AssertionError("there is no pace to keep")

    async def read() -> list[bytes]:
        return [line async for batch in lines(Cut()) for line in batch]

    assert asyncio.run(read()) == whole


@pytest.mark.parametrize(("rate", "wakeups"), [(10, 10), (200, 200), (1000, 110), (20000, 110)])
def test_a_stream_wakes_us_for_each_event_unless_it_storms(rate: int, wakeups: int) -> None:
    now, taken, count, latest = 0.0, 0, 0, 0.0
    pace = Pace(clock=lambda: now)
    while now < 1.0:
        arrived = int(now * rate)
        if arrived == taken:
            now = (taken + 1) / rate + 1e-9
            continue
        latest = max(latest, now - (taken + 1) / rate)
        events, taken = arrived - taken, arrived
        count += 1
        now += pace.pause(events) + 1e-5
    assert count <= wakeups
    assert latest <= Pace.PAUSE + 1 / rate
    if rate < Pace.RATE:
        assert latest < 1e-4, "nothing is late while it is calm"


def test_a_storm_ends() -> None:
    now = 0.0
    pace = Pace(clock=lambda: now)
    pauses = []
    while Pace.PAUSE not in pauses:
        now += 0.001
        pauses.append(pace.pause(1))
    assert len(pauses) > Pace.BURST
    for _ in range(3):
        now += 0.02
        assert pace.pause(20) == Pace.PAUSE
    now += 0.02
    assert pace.pause(2) == 0.0


def test_siblings_share_what_they_have_in_common_and_nothing_else() -> None:
    decoder = ObjectDecoder(PODS)

    def decode(name: str, port: int, version: str = "1") -> Any:
        body = {
            "metadata": {
                "name": name,
                "uid": name,
                "resourceVersion": version,
                "labels": {"app": "web"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "uid": "u"}],
            },
            "spec": {
                "containers": [{"name": "c", "ports": [{"containerPort": port}], "resources": {"limits": {"x": 1}}}]
            },
        }
        return decoder.one(msgspec.json.encode(body), request="test")

    sharing = Sharing()
    one, two, other = decode("one", 80), decode("two", 80), decode("other", 81)
    for each in (one, two, other):
        sharing.share(each)
    assert (one, two, other) == (decode("one", 80), decode("two", 80), decode("other", 81))
    assert one.metadata.labels is two.metadata.labels is other.metadata.labels
    assert one.metadata.owner_references is two.metadata.owner_references
    assert one.spec.containers is two.spec.containers
    assert other.spec.containers is not one.spec.containers
    newer = decode("one", 81, "2")
    sharing.share(newer, one)
    assert newer == decode("one", 81, "2")
    assert newer.metadata.labels is one.metadata.labels
    assert newer.spec.containers is other.spec.containers
