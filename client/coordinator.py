"""Requests to a coordinator before this hospital has a node there; how they fail, in our own words."""

from __future__ import annotations

import ssl

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from common.enrolment import (
    CLOCK_TOLERANCE,
    ENROL_PATH,
    GREETING_PATH,
    MAX_ANSWER,
    MAX_ROSTER,
    ROSTER_PATH,
    Application,
    Code,
    Greeting,
    Refusal,
    RosterAnswer,
    RosterQuestion,
    Welcome,
    refused,
)
from common.errors import EnrolmentError, WireError
from common.names import origin
from common.plain_http import keep_plain

PATIENCE = 30.0
"""Seconds to wait for a connection, and for each part of an answer."""
NOT_ADMITTED = (
    "the coordinator does not admit this hospital: it was revoked, or it is unknown there. "
    "Ask the coordinator; a new token is for a new folder."
)
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAME = (62, 64)
"""OpenSSL's verification errors (x509_vfy.h); 62 is about a name, 64 about an IP address."""


class Coordinator:
    """The coordinator at a host and port."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._origin = origin(host, port)

    def greeting(self, ca: x509.Certificate | None = None) -> Greeting:
        """Return what whoever answers there says; without `ca`, nothing of it is to be trusted yet."""
        status, body = self._request("GET", GREETING_PATH, _trusting(ca) if ca else _believing_anybody())
        if status != httpx.codes.OK:
            raise self._stranger(status)
        try:
            return Greeting.model_validate_json(body)
        except ValidationError:
            raise self._stranger(status) from None

    def apply(self, application: Application, ca: x509.Certificate) -> Welcome:
        """Return the answer to `application`, sent to nobody whom `ca` did not certify for this host.

        Raises EnrolmentRefused with the coordinator's code, EnrolmentError where no answer can be had.
        """
        status, body = self._request("POST", ENROL_PATH, _trusting(ca), application.to_json())
        try:
            if status == httpx.codes.OK:
                return Welcome.model_validate_json(body)
            code = Refusal.model_validate_json(body).code
        except ValidationError:
            raise self._stranger(status) from None
        raise refused(code)

    def roster(self, question: RosterQuestion, ca: x509.Certificate) -> RosterAnswer:
        """Return every enrolled hospital's identity key, and who vouches for whom. Raises as `apply` does."""
        content = question.to_json()
        status, body = self._request("POST", ROSTER_PATH, _trusting(ca), content, limit=MAX_ROSTER)
        try:
            if status == httpx.codes.OK:
                return RosterAnswer.model_validate_json(body)
            code = Refusal.model_validate_json(body).code
        except ValidationError:
            raise self._stranger(status) from None
        raise refused(code)

    def _request(
        self,
        method: str,
        path: str,
        context: ssl.SSLContext,
        content: bytes = b"",
        *,
        limit: int = MAX_ANSWER,
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        try:
            with httpx.Client(verify=context, timeout=PATIENCE, headers=headers) as client:
                keep_plain(client, lambda path: limit)
                response = client.request(method, self._origin + path, content=content)
                return response.status_code, response.content
        except WireError as error:
            raise EnrolmentError(
                f"{self._origin} answers, but not as a Zamenis coordinator does: {error}"
            ) from error
        except httpx.TransportError as error:
            raise EnrolmentError(self._explain(error)) from error

    def _explain(self, error: httpx.TransportError) -> str:
        """Return what went wrong on the line, and what to do."""
        failed = _verification(error)
        if failed is None:
            return (
                f"{self._origin} cannot be reached ({error or type(error).__name__}). Ask the coordinator "
                "whether it runs, and your network's people for an outgoing connection to that address; "
                "then run the same command again."
            )
        if failed.verify_code in _OTHER_NAME:
            return (
                f"the certificate at {self._origin} does not name {self._host}: the token's address leads "
                "elsewhere, or the coordinator moved. Ask the coordinator for a new token."
            )
        if failed.verify_code in (_NOT_YET_VALID, _EXPIRED):
            when = "is not valid yet" if failed.verify_code == _NOT_YET_VALID else "has expired"
            return (
                f"the certificate at {self._origin} {when}. Set this machine's clock if it is wrong; "
                "else ask the coordinator to renew its certificate."
            )
        return (
            f"the certificate at {self._origin} is not from this federation: somebody stands in between, "
            "or another server answers there. Do not go on; tell the coordinator."
        )

    def _stranger(self, status: int) -> EnrolmentError:
        """Return the error for an answer that no coordinator gives."""
        if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return refused(Code.UNAVAILABLE)
        return EnrolmentError(
            f"{self._origin} answers (HTTP {status}), but not as a Zamenis coordinator does. "
            "Ask the coordinator whether the token's address is right."
        )


def trouble_with_clock(theirs: float, before: float, after: float) -> str:
    """Return by how much every moment from `before` to `after` is off `theirs`; nothing where one is near."""
    ahead = before - theirs if before > theirs else min(after - theirs, 0.0)
    if abs(ahead) <= CLOCK_TOLERANCE:
        return ""
    return (
        f"this machine's clock is {abs(ahead):.0f} seconds {'ahead of' if ahead > 0 else 'behind'} the "
        f"coordinator's; {CLOCK_TOLERANCE:.0f} are allowed. Set both by a time server (NTP)."
    )


def _believing_anybody() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _trusting(ca: x509.Certificate) -> ssl.SSLContext:
    """Return TLS settings that trust this authority and no other."""
    trusted = ssl.create_default_context(cadata=ca.public_bytes(Encoding.DER))
    trusted.verify_flags |= ssl.VERIFY_X509_STRICT
    return trusted


def _verification(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the verification error behind `error`, if there is one."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error
