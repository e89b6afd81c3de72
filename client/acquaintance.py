"""What a node asks the coordinator beside its line: who the other hospitals are, and what time it is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version

from cryptography import x509

from client.coordinator import NOT_ADMITTED, Coordinator, trouble_with_clock
from client.home import Home
from client.peers import Peers
from common.enrolment import About, Code, RosterQuestion
from common.errors import EnrolmentError, EnrolmentRefused, SecAggError
from common.secagg.encoding import dump, load
from common.secagg.vouching import Vouch


def ask(home: Home) -> Peers:
    """Return the hospitals that the coordinator names, pinned; their vouches and this one's change hands.

    Raises EnrolmentError where no answer can be had.
    """
    settings, peers = home.settings, home.peers()
    question = RosterQuestion.sign(
        federation=settings.federation,
        hospital=settings.site,
        time=time.time(),
        about=About(version=version("zamenis"), knows=tuple(_known(home, peers))),
        vouches=[dump(one) for one in peers.held.given],
        sign=home.keys().identity.sign,
    )
    try:
        answer = Coordinator(settings.host, settings.port).roster(question, _authority(home))
    except EnrolmentRefused as error:
        if error.code != Code.UNKNOWN:
            raise
        raise EnrolmentError(compare_clocks(home) or NOT_ADMITTED) from error
    return home.peers().learn(settings.site, answer.identity_keys, _read(answer.vouches), settings.federation)


def _known(home: Home, peers: Peers) -> list[str]:
    known = home.roster(peers).peers
    return sorted(name for name, peer in known.items() if peer.trusted and name != home.settings.site)


def compare_clocks(home: Home) -> str:
    """Return by how much this machine's clock is off the coordinator's; nothing where it is near or unknown.

    The coordinator refuses a signature for the wrong time just as it refuses a hospital that was revoked.
    """
    coordinator = Coordinator(home.settings.host, home.settings.port)
    try:
        before = time.time()
        theirs = coordinator.greeting(_authority(home)).time
    except EnrolmentError:
        return ""
    return trouble_with_clock(theirs, before, time.time())


def _read(vouches: Iterable[bytes]) -> tuple[Vouch, ...]:
    """Return what can be read; whose word it is and whether it counts is for `Peers` to say."""
    words = []
    for one in vouches:
        with suppress(SecAggError):
            words.append(load(Vouch, one))
    return tuple(words)


def _authority(home: Home) -> x509.Certificate:
    return x509.load_pem_x509_certificate(home.ca.read_bytes())
