"""Joining a federation: from a token to a node's folder, in one call that may be repeated until it succeeds.

1. Fetch the greeting without trusting anybody. Only a CA certificate with the token's fingerprint is
   believed, and nothing that comes along with it. Name, protocol and clock are compared at once, so that
   what is wrong is told before TLS trips over it; whoever alters them can make a join fail, not succeed.
2. Make this hospital's keys, in a folder beside the node's: a join that was cut off sends them again.
3. Send the application over TLS that trusts that CA alone, to the host that the token names.
4. Write the node's folder, whole, once the coordinator has answered.
"""

from __future__ import annotations

import hashlib
import hmac
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from client.coordinator import Coordinator, trouble_with_clock
from client.home import Home, Keys, NodeSettings, is_home
from client.policy import guarded
from common.enrolment import Application, Code, Welcome
from common.errors import EnrolmentError, EnrolmentPending, EnrolmentRefused
from common.files import fresh_folder, locked_folder, write_text
from common.identity import fingerprint
from common.invitation import Invitation, fingerprint_of
from common.wire import PROTOCOL

Clock = Callable[[], float]


def join(token: str, directory: Path, *, clock: Clock = time.time) -> Home:
    """Enrol this hospital with `token` and return its node's new folder at `directory`.

    Raises EnrolmentError, which says what is wrong and what to do; EnrolmentRefused where the coordinator
    said no; EnrolmentPending where its people have yet to accept: then the same call succeeds later.
    """
    invitation = Invitation.decode(token)
    directory = directory.resolve()
    _refuse_occupied(directory)
    coordinator = Coordinator(invitation.host, invitation.port)
    ca = _recognise(coordinator, invitation, clock)
    with _alone(directory):
        _refuse_occupied(directory)
        return _enrol(coordinator, ca, invitation, directory, clock)


def _enrol(
    coordinator: Coordinator, ca: x509.Certificate, invitation: Invitation, directory: Path, clock: Clock
) -> Home:
    unfinished = _Unfinished.of(invitation, directory)
    keys = unfinished.load()
    if keys is None:
        invitation.refuse_expired(clock())
        keys = unfinished.make()
    application = Application.sign(
        federation=invitation.federation,
        hospital=invitation.hospital,
        secret=invitation.secret,
        node=keys.node,
        identity=keys.identity,
    )
    try:
        welcome = coordinator.apply(application, ca)
    except EnrolmentRefused as error:
        if error.code != Code.UNAVAILABLE:
            unfinished.remove()
        raise
    _check_welcome(welcome, application)
    home = _write(directory, invitation, keys, ca, welcome)
    unfinished.remove()
    return home


def _alone(directory: Path) -> ExitStack:
    """Let one join at a time make a node in a folder: the next finds the node, or goes on with its keys."""
    with ExitStack() as held:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked_folder(directory.parent))
        except OSError as error:
            raise EnrolmentError(
                f"{directory.parent}: cannot be used ({error.strerror}). Nothing was sent. "
                "Name another folder; then use the same token."
            ) from error
        return held.pop_all()


def _refuse_occupied(directory: Path) -> None:
    if is_home(directory):
        raise EnrolmentError(f"{directory}: holds a hospital's node already. Name another folder.")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise EnrolmentError(f"{directory}: is not empty. Name a new folder.")


def _recognise(coordinator: Coordinator, invitation: Invitation, clock: Clock) -> x509.Certificate:
    """Return the federation's CA certificate, recognised by the token's fingerprint."""
    before = clock()
    greeting = coordinator.greeting()
    after = clock()
    try:
        ca = x509.load_pem_x509_certificate(greeting.ca.encode())
    except ValueError:
        ca = None
    if ca is None or not hmac.compare_digest(fingerprint_of(ca), invitation.fingerprint):
        raise EnrolmentError(
            f"who answers at {invitation.host} is not the federation of this token: its certificate has "
            "another fingerprint. Do not go on; tell the coordinator."
        )
    if greeting.name != invitation.federation:
        raise EnrolmentError(
            f"the token is for the federation {invitation.federation}, and {greeting.name} answers. "
            "Ask the coordinator for a new token."
        )
    if greeting.protocol != PROTOCOL:
        raise EnrolmentError(
            f"the coordinator speaks protocol {greeting.protocol}, this node {PROTOCOL}; "
            "install the same version of Zamenis on both."
        )
    if trouble := trouble_with_clock(greeting.time, before, after):
        raise EnrolmentError(trouble)
    return ca


@dataclass(frozen=True)
class _Unfinished:
    """Where a join keeps its keys until it is done, and for which token they are."""

    folder: Path
    token: str

    @classmethod
    def of(cls, invitation: Invitation, directory: Path) -> _Unfinished:
        token = hashlib.sha256(invitation.fingerprint + invitation.secret).hexdigest()
        return cls(directory.with_name(f".{directory.name}.joining"), token)

    def load(self) -> Keys | None:
        """Return the keys that were made for this token before, if any."""
        try:
            same = hmac.compare_digest((self.folder / "token").read_bytes(), self.token.encode())
        except OSError:
            return None
        return Keys.load(self.folder) if same else None

    def make(self) -> Keys:
        """Return new keys, kept on disk before anybody hears of them; another token's keys are dropped."""
        self.remove()
        keys = Keys.make()
        try:
            with fresh_folder(self.folder) as folder:
                keys.save(folder)
                write_text(folder / "token", self.token)
        except OSError as error:
            raise EnrolmentError(
                f"{self.folder.parent}: this hospital's keys cannot be written there ({error.strerror}). "
                "Nothing was sent. Make room, or name another folder; then use the same token."
            ) from error
        return keys

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _check_welcome(welcome: Welcome, application: Application) -> None:
    if welcome.status == "pending":
        raise EnrolmentPending(
            f"{application.hospital} has applied, and the coordinator has yet to accept it. Its identity "
            f"key is {fingerprint(application.identity_key)}. Run the same command again when it is accepted."
        )
    own = welcome.identity_keys.get(application.hospital)
    if welcome.hospital != application.hospital or own != application.identity_key or not welcome.node_id:
        raise EnrolmentError(
            "the coordinator's answer is about another hospital or other keys. Tell the coordinator; "
            "then run the same command again."
        )


def _write(
    directory: Path, invitation: Invitation, keys: Keys, ca: x509.Certificate, welcome: Welcome
) -> Home:
    settings = NodeSettings(
        site=invitation.hospital,
        federation=invitation.federation,
        host=invitation.host,
        port=invitation.port,
        node_id=welcome.node_id,
    )
    peers = {name: key for name, key in welcome.identity_keys.items() if name != invitation.hospital}
    try:
        certificate = ca.public_bytes(Encoding.PEM)
        return Home.make(directory, settings, keys, ca=certificate, peers=peers, policy=guarded())
    except OSError as error:
        raise EnrolmentError(
            f"{directory}: the coordinator has enrolled this hospital, but its folder cannot be written "
            f"({error.strerror}). Make room there and run the same command again; the token is still good."
        ) from error
