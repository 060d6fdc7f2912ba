"""Who may have which certificate, whose turn it is to sign, and when a certificate is renewed."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from certificates.errors import AuthorityUnusable, Refused
from certificates.renewer import files
from certificates.renewer.files import Held
from certificates.renewer.timing import renewal
from certificates.signer.authorities import Authority, succession
from certificates.signer.judging import NODE_NAME, judge
from foundation.kube.models.certificates import CertificateSigningRequestSpec

NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
NAME = "node-a.cni-node.dpu-offload.io"
ACCOUNTS = {"cni-node": ["cni-node"], "cni-node-dpu": ["cni-node"], "csi-node-dpu": ["csi-node-dpu"]}


def request(*names: x509.GeneralName, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def spec(pem: bytes | None = None, *, account: str = "cni-node", node: str | None = "node-a", **fields: object):  # type: ignore[no-untyped-def]
    extra = {NODE_NAME: (node,)} if node is not None else {}
    return CertificateSigningRequestSpec(
        request=pem if pem is not None else request(x509.DNSName(NAME)),
        username=f"system:serviceaccount:dpu-offload:{account}",
        extra=extra,
        **{"usages": ("client auth", "server auth", "digital signature")} | fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("account", ["cni-node", "cni-node-dpu"])
def test_a_node_gets_its_own_name(account: str) -> None:
    _, identity = judge(spec(account=account), namespace="dpu-offload", accounts=ACCOUNTS)
    assert identity.server_name == NAME


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (spec(node="node-b"), "comes from node node-b"),
        (spec(node=None), "comes from no known node"),
        (spec(account="csi-node-dpu"), "may not be cni-node"),
        (spec(account="default"), "none of the service accounts"),
        (spec(b"nonsense"), "not a PKCS #10 request"),
        (spec(request()), "no subject alternative name"),
        (spec(request(x509.DNSName(NAME), x509.DNSName("node-b.cni-node.dpu-offload.io"))), "one DNS name"),
        (spec(request(x509.DNSName("node-a.dpu-offload.io"))), "not of the form"),
        (spec(request(x509.DNSName("NODE-A.cni-node.dpu-offload.io"))), "not of the form"),
        (spec(request(x509.RFC822Name("a@b.c"))), "one DNS name"),
        (spec(request(x509.DNSName(NAME), key=rsa.generate_private_key(65537, 2048))), "EC with 256"),
        (spec(usages=("client auth", "cert sign")), "cert sign"),
        (spec(usages=("client auth",)), "not asked for is digital signature, server auth"),
        (spec(usages=None), "not asked for is"),
    ],
)
def test_what_is_not_given(asked: CertificateSigningRequestSpec, why: str) -> None:
    with pytest.raises(Refused, match=why):
        judge(asked, namespace="dpu-offload", accounts=ACCOUNTS)


def test_another_namespaces_account_of_the_same_name_gets_nothing() -> None:
    with pytest.raises(Refused, match="none of the service accounts"):
        judge(spec(), namespace="elsewhere", accounts=ACCOUNTS)


def test_an_altered_request_is_refused() -> None:
    pem = request(x509.DNSName(NAME))
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    at = der.index(b"node-a")
    der[at : at + 6] = b"node-c"
    altered = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(Refused, match="not signed by its own key"):
        judge(spec(altered, node="node-c"), namespace="dpu-offload", accounts=ACCOUNTS)


def test_the_first_authority_signs_at_once_and_the_next_only_once_everybody_trusts_it() -> None:
    first = Authority.make(NOW, lifetime=730 * DAY)
    assert succession([], now=NOW, spread=DAY).due
    plan = succession([first], now=NOW, spread=DAY)
    assert (plan.signing, plan.trusted, plan.due) == (first, (first,), False)
    half = NOW + 365 * DAY
    assert succession([first], now=half, spread=DAY).due
    second = Authority.make(half, lifetime=730 * DAY)
    plan = succession([second, first], now=half + DAY / 2, spread=DAY)
    assert (plan.signing, plan.trusted, plan.due) == (first, (first, second), False)
    assert succession([first, second], now=half + DAY, spread=DAY).signing is second
    assert succession([first, second], now=NOW + 731 * DAY, spread=DAY).trusted == (second,)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=40), st.integers(10, 60), st.integers(0, 3))
def test_there_is_always_a_signer_whose_leaves_are_trusted_by_who_looked_a_spread_ago(
    steps: list[int], lifetime: int, spread: int
) -> None:
    """Time passes in steps of at most a quarter of a life; what signs was published at least `spread` before."""
    now, known = NOW, [(NOW, Authority.make(NOW, lifetime=lifetime * DAY))]
    for step in steps:
        now += min(step / 400, 0.25) * lifetime * DAY
        plan = succession([one for _, one in known], now=now, spread=spread * DAY)
        if plan.due:
            fresh = Authority.make(now, lifetime=lifetime * DAY)
            known.append((now, fresh))
            plan = succession([one for _, one in known], now=now, spread=spread * DAY)
        assert not plan.due
        assert plan.signing in plan.trusted
        published = next(when for when, one in known if one is plan.signing)
        assert published + spread * DAY <= now or plan.signing is plan.trusted[0]


def test_a_stored_authority_is_read_again_and_a_damaged_one_is_refused() -> None:
    made, other = (Authority.make(NOW, lifetime=DAY) for _ in range(2))
    assert Authority.read(made.pem(), made.key_pem()).certificate == made.certificate
    for key in (other.key_pem(), b"", made.key_pem()[:40]):
        with pytest.raises(AuthorityUnusable):
            Authority.read(made.pem(), key)


def held(authority: Authority, *, at: datetime.datetime = NOW, name: str = NAME) -> Held:
    key = ec.generate_private_key(ec.SECP256R1())
    asked = x509.load_pem_x509_csr(request(x509.DNSName(name), key=key))
    chain = authority.issue(asked, name=name, now=at, lifetime=7 * DAY)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Held(authority.pem(), chain, pem)


def test_a_certificate_is_renewed_after_two_thirds_of_its_life_and_spread_a_little() -> None:
    authority = Authority.make(NOW, lifetime=100 * DAY)
    due = renewal(held(authority), name=NAME, early=0.0)
    assert NOW + 4 * DAY < due < NOW + 5 * DAY
    assert renewal(held(authority), name=NAME, early=1.0) < due


def test_an_authority_of_a_clock_that_ran_ahead_does_not_sign_before_its_time() -> None:
    ahead = Authority.make(NOW + 400 * DAY, lifetime=730 * DAY)
    plan = succession([ahead], now=NOW, spread=DAY)
    assert (plan.signing, plan.trusted, plan.due) == (None, (ahead,), True)
    fresh = Authority.make(NOW, lifetime=730 * DAY)
    plan = succession([ahead, fresh], now=NOW, spread=DAY)
    assert (plan.signing, plan.trusted, plan.due) == (fresh, (fresh, ahead), False)


def test_a_certificate_never_outlives_its_authority() -> None:
    authority = Authority.make(NOW, lifetime=3 * DAY)
    assert x509.load_pem_x509_certificate(held(authority).certificate).not_valid_after_utc == authority.ends


def test_what_cannot_be_used_is_renewed_at_once() -> None:
    authority, stranger = (Authority.make(NOW, lifetime=100 * DAY) for _ in range(2))
    good, other = held(authority), held(authority)
    useless = [
        None,
        Held(stranger.pem(), good.certificate, good.key),
        Held(good.authority, good.certificate, other.key),
        Held(good.authority, b"nonsense", good.key),
        held(authority, name="node-b.cni-node.dpu-offload.io"),
    ]
    for one in useless:
        assert renewal(one, name=NAME, early=0.0) < NOW


def test_the_three_files_change_together(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for number in range(3):
        wanted = Held(*(f"{part} {number}".encode() for part in ("ca", "certificate", "key")))
        files.write(tmp_path, wanted)
        assert files.read(tmp_path) == wanted
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o640
    directories = [path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(directories) == 1, "old ones are removed"


def test_what_a_crash_left_is_cleared(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "..half").mkdir()
    (tmp_path / "..half/tls.key").write_bytes(b"half")
    (tmp_path / "tls.crt.new").symlink_to("nowhere")
    files.write(tmp_path, Held(b"a", b"b", b"c"))
    assert not (tmp_path / "..half").exists()
    assert files.read(tmp_path) == Held(b"a", b"b", b"c")
