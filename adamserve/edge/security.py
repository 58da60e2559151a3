"""Who may call: TLS files, bearer tokens, limits, and where an endpoint may listen."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from adamserve.client.credentials import Credentials
from adamserve.errors import DataError, InvalidArgument, Unauthenticated
from adamserve.job import is_loopback


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one service takes from the wire.

    Attributes:
        message_bytes: longest message; a chunk is shorter.
        tensors, name_bytes: of a job.
        jobs, pushers: of the service, and of a job (live or not).
        job_bytes: parameters and slots of one job.
        streams: calls at the same time, on one endpoint.
        stall_s: a stream on which nothing moves for as long is cut.
        call_s: longest that any call may take.
    """

    message_bytes: int = 6 << 20
    tensors: int = 10_000
    name_bytes: int = 256
    jobs: int = 64
    pushers: int = 4096
    job_bytes: int = 256 << 30
    streams: int = 256
    stall_s: float = 30.0
    call_s: float = 600.0

    def check_name(self, name: str, field: str) -> None:
        """Refuse a name that is empty or too long."""
        size = len(name.encode())
        if not 0 < size <= self.name_bytes:
            raise InvalidArgument(f"has {size} bytes", field=field, fix=f"use 1 to {self.name_bytes}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a call has to carry.

    Attributes:
        digests: the users' tokens, as SHA-256; for every job ("") or one.
        internal: that of the service's own processes, good for every job; empty for none.
        required: refuse a call without a token even where users have none.
    """

    digests: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)
    internal: bytes = field(default=b"", repr=False)
    required: bool = False

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Read a file of tokens: a line "TOKEN" is good for every job, a line "JOB TOKEN" for that one.

        Raises:
            DataError: the file cannot be read, or holds no token; the tokens themselves are never shown.
        """
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot be read: {error}", field=str(path)) from None
        pairs = [words for line in lines if (words := line.split()) and not line.lstrip().startswith("#")]
        if not pairs or any(len(words) > 2 for words in pairs):
            raise DataError("holds no token", field=str(path), fix="write a line TOKEN, or lines JOB TOKEN")
        return cls(tuple((words[0] if len(words) == 2 else "", _digest(words[-1])) for words in pairs))

    def beside(self, secret: str, *, required: bool) -> Tokens:
        """These tokens, and a secret of the service's own processes beside them; `required` as the attribute."""
        return replace(self, internal=_digest(secret), required=required)

    def check(self, metadata: Iterable[tuple[str, str | bytes]], job: str) -> None:
        """Refuse a call that carries no token good for this job ("": for every job)."""
        if not self.digests and not self.required:
            return
        given = next((value for key, value in metadata if key == "authorization"), "")
        scheme, _, token = (given if isinstance(given, str) else "").partition(" ")
        if scheme.lower() != "bearer" or not self._good(token, job):
            raise Unauthenticated(
                "the call carries no token that allows this" if token else "the call carries no token",
                field="authorization",
                fix="connect with the service's token",
            )

    def guard(self) -> Callable[[str], bool] | None:
        """Whether an HTTP `Authorization` header carries a token good for every job; None where users have none.

        The token comes as Bearer, or as Basic's password.
        """

        def may_look(given: str) -> bool:
            scheme, _, token = given.partition(" ")
            if scheme.lower() == "basic":
                try:
                    token = base64.b64decode(token, validate=True).decode().partition(":")[2]
                except ValueError:
                    return False
            return scheme.lower() in ("basic", "bearer") and self._good(token, "")

        return may_look if self.digests else None

    def _good(self, token: str, job: str) -> bool:
        """Compare a token with every one that is known, each in constant time."""
        digest = _digest(token)
        good = hmac.compare_digest(self.internal, digest)
        for allowed, known in self.digests:
            good |= hmac.compare_digest(known, digest) and allowed in ("", job)
        return good


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Security:
    """How endpoints listen; it travels to every shard's process.

    Attributes:
        cert, key: the server's PEM certificate chain and key; empty for plain text.
        client_ca: PEM authorities that a client's certificate must come from (mutual TLS); empty asks for none.
        authority: PEM authorities that the server's certificate comes from, for the service's own processes; empty for
            the certificate itself.
        node_tls: take the certificate and the key that each node has for Ray's own TLS; see `on_this_node`.
        tokens: who may call.
        limits: what is taken.
    """

    cert: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    client_ca: bytes = field(default=b"", repr=False)
    authority: bytes = field(default=b"", repr=False)
    node_tls: bool = False
    tokens: Tokens = Tokens()
    limits: Limits = Limits()

    def as_ray(self, environ: Mapping[str, str]) -> Security:
        """With TLS as Ray's own processes have it, where they have it and no certificate was given."""
        if self.cert or environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
            return self
        return replace(self, node_tls=True, authority=_read(environ, "RAY_TLS_CA_CERT"))

    def credentials(self, secret: str) -> Credentials:
        """Those of the service's own processes, which show this secret."""
        cert, key = (self.cert, self.key) if self.client_ca else (b"", b"")
        return Credentials(token=secret, ca=self.authority or self.cert, cert=cert, key=key)

    def on_this_node(self, environ: Mapping[str, str]) -> Security:
        """With this node's certificate and key, where every node has its own."""
        if not self.node_tls:
            return self
        cert, key = (_read(environ, f"RAY_TLS_SERVER_{name}") for name in ("CERT", "KEY"))
        return replace(self, cert=cert, key=key)


def _read(environ: Mapping[str, str], name: str) -> bytes:
    """A file that a variable names; InvalidArgument where it cannot be read."""
    try:
        return Path(environ[name]).read_bytes()
    except KeyError:
        raise InvalidArgument("is not set, but RAY_USE_TLS is", field=name) from None
    except OSError as error:
        raise InvalidArgument(f"{environ[name]} cannot be read: {error.strerror}", field=name) from None


def check_bind(host: str, security: Security, *, insecure: bool) -> None:
    """Refuse to listen beyond this machine without TLS and a token, unless told so in so many words."""
    if bool(security.cert) != bool(security.key):
        raise InvalidArgument("a certificate and its key go together", field="tls_cert", fix="give both")
    if security.client_ca and not security.cert:
        raise InvalidArgument(
            "mutual TLS needs the server's certificate", field="tls_ca", fix="give --tls-cert"
        )
    if insecure or is_loopback(host) or (security.cert and security.tokens.digests):
        return
    missing = [] if security.cert else ["--tls-cert and --tls-key"]
    missing += [] if security.tokens.digests else ["--token-file"]
    raise InvalidArgument(
        f"{host} can be reached from other machines",
        field="host",
        fix=f"give {' and '.join(missing)}, or --insecure if the network is trusted",
    )
