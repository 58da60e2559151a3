"""TLS, mutual TLS and tokens, with real certificates and real connections."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import adamserve
from adamserve import optim
from adamserve.client.carriers import GrpcCarrier
from adamserve.client.credentials import Credentials
from adamserve.cluster.serving import Ready, ServeConfig
from adamserve.edge.security import Security, Tokens, check_bind
from adamserve.errors import AdamServeError, DataError, InvalidArgument, Unauthenticated, Unavailable
from adamserve.v1 import shard_pb2
from tests.served import served

TOKENS = "# a comment\nmaster-token\nalpha alpha-token\n"


class Authority:
    """A certificate authority that lives in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.cert = self._sign(self.subject, self.key, ca=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.cert.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, days: int = 1) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 and its key; expired where `days` is negative."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        cert = self._sign(subject, key, ca=False, days=days)
        paths = (self.folder / f"{name}.crt", self.folder / f"{name}.key")
        paths[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths

    def _sign(self, subject: x509.Name, key: Any, *, ca: bool, days: int = 1) -> x509.Certificate:
        import ipaddress

        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=10))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self.key, hashes.SHA256())
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module")
def secured(authority: Authority) -> Iterator[Ready]:
    """Mutual TLS and tokens."""
    cert, key = authority.issue("server")
    tokens = authority.folder / "tokens"
    tokens.write_text(TOKENS)
    security = Security(
        cert=cert.read_bytes(),
        key=key.read_bytes(),
        client_ca=authority.path.read_bytes(),
        tokens=Tokens.read(tokens),
    )
    with served(security=security) as ready:
        yield ready


@pytest.fixture(scope="module", params=["direct", "grpc"])
def good(authority: Authority, request: pytest.FixtureRequest) -> dict[str, Any]:
    cert, key = authority.issue("client")
    return {
        "ca": authority.path,
        "cert": cert,
        "key": key,
        "token": "master-token",
        "timeout_s": 20.0,
        "transport": request.param,
    }


def test_with_certificate_and_token_everything_works(secured: Ready, good: dict[str, Any]) -> None:
    with adamserve.connect(secured.target, "alpha", **{**good, "token": "alpha-token"}) as client:
        client.create({"w": np.zeros(300_000, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))
        before, clock = client.pull()
        client.push({"w": np.ones(300_000, np.float32)}, clock)
        np.testing.assert_array_equal(client.pull()[0]["w"], before["w"] - 1)


DENIED: dict[str, tuple[str, dict[str, Any], type[AdamServeError]]] = {
    "no token": ("alpha", {"token": ""}, Unauthenticated),
    "wrong token": ("alpha", {"token": "master-tokem"}, Unauthenticated),
    "another job's token": ("beta", {"token": "alpha-token"}, Unauthenticated),
    "no client certificate": ("alpha", {"cert": None, "key": None}, Unavailable),
    "plain text": ("alpha", {"ca": None, "cert": None, "key": None}, Unavailable),
}


@pytest.mark.parametrize(("job", "options", "kind"), DENIED.values(), ids=DENIED)
def test_without_them_nothing_does(
    secured: Ready, good: dict[str, Any], job: str, options: dict[str, Any], kind: type[AdamServeError]
) -> None:
    with (
        adamserve.connect(secured.target, job, **{**good, "timeout_s": 1.5, **options}) as client,
        pytest.raises(kind),
    ):
        client.create({"w": np.zeros(3, np.float32)}, optim.SGD(lr=1.0))


SHARD_CALLS: dict[str, Callable[[str], Iterator[list[bytes]]]] = {
    "Pull": lambda job: iter([[shard_pb2.PullRequest(job=job).SerializeToString()]]),
    "Push": lambda job: iter(
        [[shard_pb2.PushRequest(start=shard_pb2.PushStart(job=job)).SerializeToString()]]
    ),
    "Join": lambda job: iter([[shard_pb2.JoinRequest(job=job).SerializeToString()]]),
}


@pytest.mark.parametrize("method", SHARD_CALLS)
@pytest.mark.parametrize(("job", "options", "kind"), DENIED.values(), ids=DENIED)
def test_a_shard_asks_by_itself(
    secured: Ready,
    good: dict[str, Any],
    method: str,
    job: str,
    options: dict[str, Any],
    kind: type[AdamServeError],
) -> None:
    """Whatever the controller has let pass: its own gRPC endpoint, called without the client."""
    with adamserve.connect(secured.target, job, **good) as client:
        client.create({"w": np.zeros(300_000, np.float32)}, optim.SGD(lr=1.0, momentum=0.0))

    def called(**changed: Any) -> list[Any]:
        given = {**good, **changed}
        files: dict[str, Any] = {
            n: Path(given[n]).read_bytes() if given[n] else b"" for n in ("ca", "cert", "key")
        }
        credentials = Credentials(token=given["token"], **files)
        with credentials.channel(secured.shards[0]) as channel:
            carrier = GrpcCarrier(channel, credentials.metadata)
            return [bytes(part) for part in carrier.call(method, SHARD_CALLS[method](job), 5.0)]

    if method == "Pull":
        assert called()
    else:
        with pytest.raises(AdamServeError) as caught:
            called()  # it is let in, and has no pusher's name
        assert not isinstance(caught.value, (Unauthenticated, Unavailable))
    with pytest.raises(kind):
        called(**options)


def test_an_expired_or_foreign_client_certificate_is_refused(
    secured: Ready, good: dict[str, Any], authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger")
    for cert, key in (authority.issue("late", days=-1), stranger.issue("other")):
        options = {**good, "cert": cert, "key": key, "timeout_s": 1.5}
        with adamserve.connect(secured.target, "alpha", **options) as client, pytest.raises(Unavailable):
            client.pull()
    options = {**good, "ca": stranger.path, "timeout_s": 1.5}
    with adamserve.connect(secured.target, "alpha", **options) as client, pytest.raises(Unavailable):
        client.pull()


def test_tokens_are_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    tokens = Tokens.read(path)
    security = Security(tokens=tokens, cert=b"-----BEGIN secret", key=b"-----BEGIN secret")
    for shown in (
        repr(tokens),
        repr(security),
        str(ServeConfig(security=security, insecure=True, host="::")),
    ):
        assert "token" not in shown.lower().replace("tokens=", "").replace("tokens(required=false)", "")
        assert "secret" not in shown
    (tmp_path / "bad").write_text("one two three\n")
    with pytest.raises(DataError, match="holds no token"):
        Tokens.read(tmp_path / "bad")


@pytest.mark.parametrize(
    ("host", "cert", "token", "insecure", "allowed"),
    [
        ("127.0.0.1", False, False, False, True),
        ("localhost", False, False, False, True),
        ("::1", False, False, False, True),
        ("0.0.0.0", False, False, False, False),
        ("0.0.0.0", True, False, False, False),
        ("10.0.0.1", False, True, False, False),
        ("0.0.0.0", True, True, False, True),
        ("node-7", False, False, False, False),
        ("0.0.0.0", False, False, True, True),
    ],
)
def test_where_an_endpoint_may_listen(
    host: str, cert: bool, token: bool, insecure: bool, allowed: bool
) -> None:
    pem = b"x" if cert else b""
    tokens = Tokens((("", b"d"),)) if token else Tokens()
    security = Security(cert=pem, key=pem, tokens=tokens)
    if allowed:
        check_bind(host, security, insecure=insecure)
    else:
        with pytest.raises(InvalidArgument, match="can be reached from other machines"):
            check_bind(host, security, insecure=insecure)
