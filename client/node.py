"""The hospital's node: take a message, have the worker answer it, send the reply; until told to stop.

It opens connections and accepts none. What comes in is arrays and configuration, checked against
policy.toml; the only code that runs is what is installed here.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from flwr.app import Message

from client.acquaintance import ask, compare_clocks
from client.fleet import Fleet, NotAdmittedError, UnusableError
from client.home import Home
from client.hours import opens
from client.peers import Peers
from client.policy import Policy, policy_of
from client.reach import Reach, reach_of
from client.secure import Desk, demands
from client.site import NodeConfig
from client.vault import Vault
from client.worker import Worker, WorkerError
from common import wire
from common.errors import ConfigError, ZamenisError
from common.files import write_text
from common.secagg.site import Member

logger = logging.getLogger("zamenis.node")
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 2.0
"""Seconds between two looks for a message; a tenth of the time since the last one, within these."""
FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds until a lost line is tried again, doubling."""
BETWEEN_ROSTERS = 3600.0
"""Seconds between two questions for who is there and who vouches for whom."""
STARTING, CONNECTED, WAITING = "starting", "connected", "waiting to try again"
ASLEEP = 5.0
"""Seconds between two looks at whether the node may work again."""


@dataclass(frozen=True)
class Unsent:
    """A reply that is on its way, and the policy that it was computed under."""

    reply: Message
    refusal: Message
    policy: Policy

    def now(self, policy: Policy) -> Message:
        """Return what may leave: the reply, or a refusal where the policy has changed since."""
        return self.reply if policy == self.policy else self.refusal


@dataclass
class Node:
    """A running node of the hospital at `home`."""

    home: Home
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        policy_of(self.home.policy)
        config = config_of(self.home)
        self._worker = Worker(config, _reach(self.home, config), seconds=0.0)
        self._answered = 0
        self._work: Work | None = None
        self._unsent: Unsent | None = None  # a reply outlives the line that it was computed on
        self._told: dict[str, object] = {}
        self._meets = 0.0  # when the roster is asked for next, by the monotonic clock

    def run(self) -> None:
        """Work until `stopping` is set; whatever happens to the line, try again."""
        self._tell(STARTING)
        self._worker.start()
        vault_of(self.home).tidy()
        retry = FIRST_RETRY
        try:
            while not self.stopping.is_set():
                if why := self._asleep():
                    self._tell(why)
                    self.stopping.wait(ASLEEP)
                    continue
                try:
                    with self._line() as line:
                        retry = FIRST_RETRY
                        self._tell(CONNECTED)
                        self._serve(line)
                except NotAdmittedError as error:
                    retry = self._wait(retry, compare_clocks(self.home) or str(error))
                except ZamenisError as error:
                    retry = self._wait(retry, str(error))
                except Exception:
                    logger.exception("the line broke in a way that we have no words for")
                    retry = self._wait(retry, "the line broke; the log says more")
        finally:
            self._worker.stop()
            self._tell("stopped")

    def _wait(self, retry: float, why: str) -> float:
        """Wait before the line is tried again; return how long to wait the next time."""
        self._tell(WAITING, why)
        self.stopping.wait(retry)
        return min(2 * retry, LAST_RETRY)

    def _serve(self, line: Fleet) -> None:
        """Answer messages for as long as this node may work."""
        last = time.monotonic()
        while not self.stopping.is_set() and not self._asleep():
            self._meet()
            self._unsent = self._unsent or self._next_reply(line)
            if self._unsent is None:
                pause = (time.monotonic() - last) / 10
                self.stopping.wait(min(max(pause, SHORTEST_PAUSE), LONGEST_PAUSE))
                continue
            if not line.send(self._unsent.now(policy_of(self.home.policy))):
                logger.warning("the reply came too late: its round or its run is over")
            self._unsent = None
            last = time.monotonic()
            self._answered += 1
            self._work = self._work and replace(self._work, since=time.time(), busy=False)
            self._tell(CONNECTED)

    def _meet(self) -> None:
        """Hear once in a while who is there and who vouches for whom; without an answer go on."""
        if time.monotonic() < self._meets:
            return
        self._meets = time.monotonic() + BETWEEN_ROSTERS
        try:
            ask(self.home)
        except (ZamenisError, OSError) as error:
            logger.warning("the roster cannot be asked for: %s", error)

    def _next_reply(self, line: Fleet) -> Unsent | None:
        """Return the reply to the next message, or None where none waits."""
        policy = policy_of(self.home.policy)
        try:
            message = line.receive(limit=policy.max_message_mib * 2**20)
        except UnusableError as error:
            refusal = self._refuse(error.message, wire.REFUSED, str(error))
            return Unsent(refusal, refusal, policy)
        if message is None:
            return None
        refusal = self._refuse(message, wire.FORBIDDEN, wire.WORDS[wire.FORBIDDEN])
        return Unsent(self._answer(message), refusal, policy)

    def _answer(self, message: Message) -> Message:
        """Return the worker's reply, or a refusal where it has none."""
        self._begin(message)
        try:
            self._renew()
            self._worker.seconds = policy_of(self.home.policy).max_seconds
            return desk_of(self.home).answer(message, self._compute)
        except WorkerError as error:
            logger.error("the worker %s", error)
            return self._refuse(message, wire.LOST, wire.WORDS[wire.LOST])
        except ZamenisError as error:
            logger.error("%s", error)
            return self._refuse(message, wire.REFUSED, wire.WORDS[wire.REFUSED])
        except Exception:
            logger.exception("a message failed at the node")
            return self._refuse(message, wire.FAILED, wire.WORDS[wire.FAILED])

    def _begin(self, message: Message) -> None:
        """Tell what is worked at; a message that is of no round belongs to the last one of its run."""
        told, kind = message.metadata, message.metadata.message_type
        name, server_round = wire.place_of(told.group_id)
        run = name or f"run {told.run_id}"
        if self._work and self._work.run == run:
            server_round = server_round or self._work.round
        self._work = Work(run, server_round, time.time(), busy=True)
        logger.info("%s%s: %s", run, f", round {server_round}" if server_round else "", kind)
        self._tell(CONNECTED)

    def _compute(self, message: Message) -> Message:
        return self._worker.serve(message, stopping=self.stopping.is_set)

    def _refuse(self, message: Message, code: int, words: str) -> Message:
        return wire.refuse(message, code, f"{self.home.settings.site}: {words}")

    def _renew(self) -> None:
        """Take up what was registered since the worker started."""
        config = config_of(Home.load(self.home.directory))
        if config != self._worker.config:
            logger.info("what is registered has changed; a new worker takes over")
            self._worker.stop()
            self._worker.config, self._worker.reach = config, _reach(self.home, config)

    def _line(self) -> Fleet:
        where = self.home.settings
        key = self.home.keys().node
        return Fleet(f"{where.host}:{where.port}", self.home.ca.read_bytes(), key, where.node_id)

    def _asleep(self) -> str:
        """Return why this node may not work now, or nothing."""
        if self.home.paused:
            return "paused"
        try:
            policy_of(self.home.policy)
        except ConfigError as error:
            return f"nothing is allowed: {error}"
        hours = self.home.settings.hours
        return "" if opens(hours, datetime.now().time()) else f"outside its hours, {hours}"

    def _tell(self, state: str, why: str = "") -> None:
        """Write what `status` shows; a full disk does not stop a node."""
        walls = self._worker.walls
        told = {
            "state": state,
            "why": why,
            "answered": self._answered,
            "worker": self._worker.pid,
            "open": walls.missing if walls else "",
            "work": self._work and asdict(self._work),
        }
        if told == self._told:
            return
        if (state, why) != (self._told.get("state"), self._told.get("why")):
            logger.info("%s%s", state, f": {why}" if why else "")
        self._told = told
        try:
            write_text(status_file(self.home), json.dumps(told | {"time": time.time()}))
        except OSError as error:
            logger.warning("the status cannot be written: %s", error.strerror)


def desk_of(home: Home) -> Desk:
    """Return this hospital's part in secure aggregation, with its peers and its policy as they are now."""
    policy, site = policy_of(home.policy), home.settings.site

    def member(peers: Peers) -> Member:
        return Member(site, home.identity, home.roster(peers), demands(policy))

    return Desk(
        member(home.peers()),
        vault_of(home),
        policy,
        learn=lambda told: member(home.peers().learn(site, told)),
    )


def vault_of(home: Home) -> Vault:
    """Return where this hospital remembers what it masked."""
    return Vault(home.state / "vault.db")


def status_file(home: Home) -> Path:
    """Return the file in which a running node says how it is."""
    return home.state / "node.json"


@dataclass(frozen=True)
class Work:
    """What a node works at, or did last."""

    run: str
    """The run's name at the coordinator, or Flower's number of it."""
    round: int
    """0: none, as when cases are counted or phi is judged."""
    since: float
    """Unix time of the message, or of its answer."""
    busy: bool


@dataclass(frozen=True)
class State:
    """How a running node said it is."""

    state: str
    why: str = ""
    """What it waits for, and what to do about it."""
    answered: int = 0
    """Messages since it started."""
    open: str = ""
    """What this machine's Linux does not keep the worker from."""
    work: Work | None = None
    """None before the first message."""


def state_of(home: Home) -> State:
    """Return how a running node said it is."""
    try:
        told = json.loads(status_file(home).read_text(encoding="utf-8"))
        work = Work(**told["work"]) if told["work"] else None
        return State(told["state"], told["why"], told["answered"], told["open"], work)
    except (OSError, ValueError, KeyError, TypeError):
        return State(STARTING)


def _reach(home: Home, config: NodeConfig) -> Reach:
    return reach_of(home, config, home.logs / "worker.log")


def config_of(home: Home) -> NodeConfig:
    """Return the node configuration that the ClientApp knows a hospital by (see `client.site`)."""
    settings = home.settings
    return {
        "site": settings.site,
        "hospital": "\n".join(one.folder for one in settings.data),
        "state": "\n".join(one.state for one in settings.data),
        "labels": "\n".join(one.labels for one in settings.data),
        "tasks": "\n".join(json.dumps([one.kind, one.label, *one.classes]) for one in settings.data),
        "shares": "\n".join(str(one.adaptation_share) for one in settings.data),
        "rows": str(home.book.path),
        "policy": str(home.policy),
        "device": settings.device,
        "threads": settings.threads,
    }
