"""Getting to know the other hospitals: asking the coordinator who they are; operators confirm them."""

from __future__ import annotations

import time

from cryptography import x509

from client.coordinator import Coordinator
from client.home import Home
from client.peers import Peers
from common.enrolment import RosterQuestion


def ask(home: Home) -> Peers:
    """Return the pinned hospitals after asking the coordinator; new or changed keys are unconfirmed.

    Raises EnrolmentError where no answer can be had.
    """
    settings = home.settings
    question = RosterQuestion.sign(
        federation=settings.federation,
        hospital=settings.site,
        time=time.time(),
        sign=home.keys().identity.sign,
    )
    ca = x509.load_pem_x509_certificate(home.ca.read_bytes())
    answer = Coordinator(settings.host, settings.port).roster(question, ca)
    return home.peers().learn(settings.site, answer.identity_keys)
