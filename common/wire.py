"""Everything that crosses between coordinator and hospital, by name and shape.

| message | down | up |
|---|---|---|
| `query.describe` | configuration | site, input shape, features of a table, digest, counts above a floor |
| `train` | phi, configuration, algorithm, server_round, statistics, clip | delta, sums |
| `train` with column_sums | configuration, algorithm | sums over numeric columns (`common.columns`) |
| `evaluate` | phi, configuration, algorithm, shot, recipe, statistics | metrics per draw and replicate |
| `query.advertise`, `.deal`, `.unmask`, `.rehearse`, `.finish` | records of `common.secagg` | the same |

With secure aggregation a `train` message carries a plan as well, and its reply a masked vector in place of
delta and sums.

Weights travel as one float32 vector `[parameter]` (`common.weights.pack`).
A hospital's error travels as a code and our own words, never as an exception's text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast, get_type_hints

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from common.errors import ProtocolError, WireError
from common.features import Features
from common.inner_loop import InnerLoop

PROTOCOL = 3
DESCRIBE, TRAIN, EVALUATE = "query.describe", "train", "evaluate"
ADVERTISE, DEAL, UNMASK, FINISH = "query.advertise", "query.deal", "query.unmask", "query.finish"
REHEARSE = "query.rehearse"
SECURE_QUERIES = frozenset({ADVERTISE, DEAL, UNMASK, REHEARSE, FINISH})
KINDS = frozenset({DESCRIBE, TRAIN, EVALUATE}) | SECURE_QUERIES
"""Every kind of message that a site answers; Flower would route others, such as `train.default`, as well."""
MOST_OF_A_METRIC = 1e30
LONGEST_NAME = 128
"""Characters of a run's name, and of any text in an instruction that is not in `LONGEST_TEXTS`."""
LONGEST_TEXTS = {"config": 2**18, "statistics": 2**22, "recipe": 2**10}
"""Characters: what is read of them takes many times their length, and configurations are remembered."""
RAW = "zamenis.float32.le"
"""How weights are serialised; Flower's own form parses a Python literal for every array."""
REFUSED, FAILED, FORBIDDEN, UNKNOWN_PROTOCOL, LOST, INSECURE = 1001, 1002, 1003, 1004, 1005, 1006
TOO_SMALL, UNFIT = 1007, 1008
"""Error codes of a hospital's refusal, each with a sentence of ours in `WORDS`."""
SUMS = ("loss-sum", "episodes", "weight", "within")
"""What a contribution has beside its delta."""
SILENT, ABSENT = "did not answer in time", "its node is not connected"
WORDS = {
    REFUSED: "its data cannot be used for this run; logs/node.log at the hospital says why.",
    FAILED: "something failed there; logs/node.log at the hospital has the rest.",
    FORBIDDEN: "its policy does not allow it.",
    UNKNOWN_PROTOCOL: "it runs another version of Zamenis; install the same on both sides.",
    INSECURE: "it refuses a step of secure aggregation; logs/node.log there says which.",
    UNFIT: "model.name is for images and its data are a table, or the other way round; choose another.",
    TOO_SMALL: "it has too few patients for this run.",
    LOST: "the process that computed there was lost with its message; the next message finds another.",
}
LINK_WORDS = {
    ErrorCode.MESSAGE_UNAVAILABLE: SILENT,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: SILENT,
    ErrorCode.NODE_UNAVAILABLE: ABSENT,
}
"""Our words for what a SuperLink says in a site's place; there a message's time is up a little earlier."""
TEST = "test"
"""The purpose of judging at a held-out hospital; any other purpose draws other supports."""
LONGEST_WORDS = 400
"""Characters of a hospital's words that a coordinator reads."""


@dataclass(frozen=True)
class Instruction:
    """What every message to a site carries."""

    config: str
    """The run's configuration as `Config.to_json`."""
    algorithm: str = ""
    server_round: int = 0
    shot: int = 0
    """Patients per class to adapt with; ALL_CASES: the whole adaptation half."""
    recipe: str = ""
    """An `InnerLoop` as JSON."""
    draws: int = 0
    replicates: int = 0
    """Bootstrap replicates of draws and test patients."""
    run: str = ""
    """Names a meta-training, for a site that keeps something between its rounds."""
    purpose: str = TEST
    """Names the random draws, so that choosing a recipe and judging it never share any."""
    statistics: str = ""
    """`common.columns.Statistics` of the meta-training as JSON; empty: a hospital's own."""
    column_sums: bool = False
    """Asks for sums over numeric columns, from which those statistics come, and for no training."""
    clip_norm: float = 0.0
    """L2 norm to which a delta is clipped in this round; 0: as far as [training] goes."""
    protocol: int = PROTOCOL


ALL_CASES = -1


Sides = tuple[int | None, int | None]
"""Patients to learn from and patients to test on; None: fewer than are told."""


@dataclass(frozen=True)
class Census:
    """How many patients a site has, as far as it tells, in the task that it has registered."""

    least: int
    """Patients below which a count is None: fewer than this, or nobody."""
    patients: Sides
    per_class: Mapping[str, Sides]
    """Of each registered class, or with each finding; empty where labels are neither."""
    refused: Mapping[str, int]
    """Files or lines left out by reason, as multiples of `least`; a reason with fewer is not there."""

    def as_dict(self) -> dict[str, Any]:
        """Return the census as plain JSON values."""
        per_class = {name: list(counts) for name, counts in self.per_class.items()}
        return {**asdict(self), "patients": list(self.patients), "per_class": per_class}


@dataclass(frozen=True)
class Description:
    """What a site says of itself before a run; counts only."""

    site: str
    input_shape: tuple[int, ...]
    digest: str
    """Changes whenever the site's registered rows or their split do."""
    census: Census
    columns: int = 0
    """Numeric columns, a case's first features, that the federation standardises."""
    features: Features | None = None
    """What a table's features are; None: cases are images."""

    @property
    def form(self) -> tuple[Any, ...]:
        """What of a case must be the same at every site."""
        return self.input_shape, self.columns, self.features and replace(self.features, missing=())

    def difference(self, other: Description, here: str, there: str) -> str:
        """Return in words what another's form of a case, which is not mine, has otherwise."""
        words = (
            self.features.difference(other.features, here, there) if self.features and other.features else ""
        )
        mine, theirs = (f"{one.input_shape} with {one.columns} columns to sum" for one in (self, other))
        return printable(words) or f"a case is {mine} at {here}, and {theirs} at {there}"


@dataclass(frozen=True)
class Contribution:
    """What a site sends after training."""

    delta: Float[Tensor, "parameter"]
    loss_sum: float
    episodes: int
    weight: int
    """How much it weighs in the round's mean (`common.weighting`)."""
    within: bool
    """Whether the delta was within the round's clip by CLIP_MARGIN before it was clipped (`within_clip`)."""
    rounding: bytes = field(default=b"", repr=False)
    """32 bytes of the hospital's own, from which whoever masks the delta draws how it is rounded."""


@dataclass(frozen=True)
class Judgement:
    """What adapting phi to a site's K cases gave, per metric.

    `draws[metric]` has one value per support draw, `replicates[metric]` one per bootstrap replicate of
    draws and test patients, each a mean over its resampled draws.
    """

    draws: Mapping[str, NDArray[np.float64]]
    replicates: Mapping[str, NDArray[np.float64]]
    hurt: float
    """Share of draws that score below zero-shot on the headline metric."""
    fell_back: float
    """Share of draws in which the safeguard kept phi as it was."""
    left_out: str = ""
    """Why this K cannot be judged here; then everything else is empty."""


def encode_recipe(recipe: InnerLoop) -> str:
    """Return a recipe as the text that travels."""
    return json.dumps(asdict(recipe), sort_keys=True)


def decode_recipe(text: str) -> InnerLoop:
    """Return the recipe that `encode_recipe` wrote."""
    try:
        return InnerLoop(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise WireError("recipe is not a known set of adaptation settings; update this node.") from error


def instruct(
    node_id: int,
    kind: str,
    instruction: Instruction,
    phi: ArrayRecord | None = None,
    *,
    seconds: float | None = None,
) -> Message:
    """Return a message of `kind` to `node_id`; `phi` as `vector` encodes it, once for a whole cohort.

    After `seconds` nobody waits for the reply, and a node that comes back later is not given the message.
    """
    content = RecordDict({"instruction": ConfigRecord(dict(asdict(instruction)))})
    if phi is not None:
        content["phi"] = phi
    return Message(content, node_id, kind, ttl=seconds, group_id=str(instruction.server_round))


def name_run(message: Message, run: str) -> None:
    """Write into a message's envelope, beside its round, what its coordinator calls the run."""
    message.metadata.group_id = f"{message.metadata.group_id} {run}"


def place_of(group_id: str) -> tuple[str, int]:
    """Return what an envelope says of run and round, for people alone: empty and 0 where it says nothing."""
    found = re.fullmatch(r"(\d{0,6}) ?([\w-]{0,64})", group_id, re.ASCII)
    return (found[2], int(found[1] or 0)) if found else ("", 0)


def read_instruction(message: Message) -> Instruction:
    """Return a message's instruction; WireError where the coordinator speaks another protocol."""
    fields = dict(message.content.config_records["instruction"])
    if fields.get("protocol") != PROTOCOL:
        raise ProtocolError(
            f"the coordinator speaks protocol {fields.get('protocol')!r}, this node {PROTOCOL}; "
            "install the same version of Zamenis on both."
        )
    kinds = get_type_hints(Instruction)
    wrong = [name for name in {**kinds, **fields} if not _is_of(fields.get(name), kinds.get(name), name)]
    if wrong:
        raise WireError(
            f"{printable(wrong[0])} of an instruction is missing, unknown, of another type or out of range; "
            "install the same version of Zamenis on both sides."
        )
    return Instruction(**cast(dict[str, Any], fields))


def _is_of(value: object, kind: type | None, name: str) -> bool:
    """Return whether a field of an instruction is of its type, and neither too long nor too low."""
    if kind is None or type(value) is not kind:
        return False
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXTS.get(name, LONGEST_NAME)
    return (ALL_CASES if name == "shot" else 0) <= cast(float, value) < math.inf


def parameters_of(message: Message) -> int:
    """Return how many parameters a message's weights have, before they are read; 0 without weights."""
    record = message.content.array_records.get("phi")
    array = record.get("vector") if record is not None else None
    return len(array.data) // 4 if array is not None else 0


def read_phi(message: Message, parameters: int) -> Float[Tensor, "parameter"]:
    """Return the weights of a message, checked for length, type and finiteness."""
    return _read_vector(message.content.array_records, "phi", parameters)


def reply_description(message: Message, description: Description) -> Message:
    """Return the reply to `query.describe`."""
    facts = ConfigRecord({"description": json.dumps(asdict(description))})
    return Message(RecordDict({"description": facts}), reply_to=message)


def read_description(reply: Message) -> Description:
    """Return what a site says of itself."""
    try:
        text = cast(str, reply.content.config_records["description"]["description"])
        return description_of(json.loads(text))
    except Exception as error:  # whatever a parser does with bytes that somebody made up
        raise WireError("what a site says of itself is not what was asked for.") from error


def description_of(fields: Mapping[str, Any]) -> Description:
    """Return a description from `asdict`'s values: the fields that we know and nothing else."""
    shape, columns = tuple(int(size) for size in fields["input_shape"]), int(fields["columns"])
    if not 0 <= columns <= math.prod(shape):
        raise ValueError("columns are among a case's features")
    features = None if fields["features"] is None else Features.of(fields["features"])
    if features and (features.width,) != shape:
        raise ValueError("features are those of a case")
    told = fields["census"]
    census = Census(
        least=int(told["least"]),
        patients=_sides(told["patients"]),
        per_class={printable(str(name)): _sides(counts) for name, counts in told["per_class"].items()},
        refused={printable(str(name)): int(count) for name, count in told["refused"].items()},
    )
    site, digest = printable(str(fields["site"])), str(fields["digest"])
    return Description(site, shape, digest, census, columns, features)


def _sides(told: Any) -> Sides:
    learned, tested = (None if count is None else int(count) for count in told)
    return learned, tested


def printable(words: str) -> str:
    """Return another side's words fit to be shown and logged: printable, on one line, of bounded length."""
    one_line = " ".join(words[: 2 * LONGEST_WORDS].split())
    return "".join(letter if letter.isprintable() else "?" for letter in one_line)[:LONGEST_WORDS]


def reply_contribution(message: Message, contribution: Contribution) -> Message:
    """Return the reply to `train`."""
    sums = MetricRecord(
        {
            "loss-sum": contribution.loss_sum,
            "episodes": contribution.episodes,
            "weight": contribution.weight,
            "within": int(contribution.within),
        }
    )
    drawn = ConfigRecord({"rounding": contribution.rounding})
    content = RecordDict({"delta": vector(contribution.delta), "sums": sums, "drawn": drawn})
    return Message(content, reply_to=message)


def read_contribution(reply: Message, parameters: int) -> Contribution:
    """Return a site's contribution; WireError where it is not what was asked for."""
    delta = _read_vector(reply.content.array_records, "delta", parameters)
    sums = reply.content.metric_records.get("sums", MetricRecord())
    try:
        loss_sum, episodes, weight, within = (sums[name] for name in SUMS)
    except KeyError as error:
        raise WireError(f"sums must hold {', '.join(SUMS)}; the site runs another version.") from error
    if not (isinstance(episodes, int) and isinstance(weight, int) and episodes > 0 and weight > 0):
        raise WireError("episodes and weight must be positive whole numbers.")
    if not isinstance(loss_sum, float) or not math.isfinite(loss_sum):
        raise WireError("loss-sum must be finite.")
    if within not in (0, 1):
        raise WireError("within must be 0 or 1.")
    rounding = reply.content.config_records.get("drawn", ConfigRecord()).get("rounding", b"")
    if not isinstance(rounding, bytes):
        raise WireError("rounding must be bytes; the site runs another version.")
    return Contribution(delta, loss_sum, episodes, weight, within == 1, rounding)


def reply_judgement(message: Message, judgement: Judgement) -> Message:
    """Return the reply to `evaluate`."""
    arrays = {f"draws/{name}": Array(values) for name, values in judgement.draws.items()}
    arrays |= {f"replicates/{name}": Array(values) for name, values in judgement.replicates.items()}
    facts: dict[str, Any] = {
        "hurt": judgement.hurt,
        "fell-back": judgement.fell_back,
        "left-out": judgement.left_out,
    }
    content = RecordDict({"judgement": ArrayRecord(arrays), "facts": ConfigRecord(facts)})
    return Message(content, reply_to=message)


def read_judgement(reply: Message) -> Judgement:
    """Return what a site measured; WireError where it is not what was asked for."""
    try:
        arrays = {name: _measured(array) for name, array in reply.content.array_records["judgement"].items()}
        facts = reply.content.config_records["facts"]
        hurt, fell_back = (float(cast(float, facts[name])) for name in ("hurt", "fell-back"))
        if not (0 <= hurt <= 1 and 0 <= fell_back <= 1):
            raise ValueError("a share lies between 0 and 1")
        return Judgement(
            draws={name[6:]: values for name, values in arrays.items() if name.startswith("draws/")},
            replicates={
                name[11:]: values for name, values in arrays.items() if name.startswith("replicates/")
            },
            hurt=hurt,
            fell_back=fell_back,
            left_out=printable(str(facts["left-out"])),
        )
    except Exception as error:  # whatever a parser does with bytes that somebody made up
        raise WireError("what a site measured is not what was asked for.") from error


def _measured(array: Array) -> NDArray[np.float64]:
    values = array.numpy()
    if values.ndim != 1 or values.dtype.kind != "f" or (np.abs(values) > MOST_OF_A_METRIC).any():
        raise ValueError("a metric must be a vector of floating-point numbers, none of them enormous")
    return values.astype(np.float64)


@dataclass(frozen=True)
class Secured:
    """What secure aggregation adds to a message: records of `common.secagg.messages` as bytes."""

    run: str
    request: bytes = b""
    holders: bytes = b""
    """Who gets shares for the next slot."""
    answer: bytes = b""
    dealing: bytes = b""
    """Shares for the next slot."""
    identities: Mapping[str, bytes] = field(default_factory=dict)
    """Every hospital's identity key, by name."""


def secure(message: Message, secured: Secured) -> Message:
    """Put `secured` on a message that is not sent yet, and return it."""
    message.content.update(_secured_records(secured))
    return message


def ask_secured(node_id: int, kind: str, secured: Secured, *, seconds: float) -> Message:
    """Return a message of `kind`, one of SECURE_QUERIES."""
    return Message(RecordDict(_secured_records(secured)), node_id, kind, ttl=seconds)


def is_secured(message: Message) -> bool:
    """Return whether a message carries something of secure aggregation."""
    return "secured" in message.content.config_records


def read_secured(message: Message) -> Secured:
    """Return what secure aggregation added to a message or reply; WireError where it is not that."""
    try:
        told = message.content.config_records["secured"]
        parts = {name: told[name] for name in ("request", "holders", "answer", "dealing")}
        identities = dict(message.content.config_records["identities"])
        run = told["run"]
    except KeyError as error:
        raise WireError("a message of secure aggregation lacks a part; update this side.") from error
    blobs = {**parts, **identities}
    if (
        not isinstance(run, str)
        or len(run) > LONGEST_NAME
        or not all(isinstance(value, bytes) for value in blobs.values())
    ):
        raise WireError("a message of secure aggregation has a part of another type.")
    return Secured(run, **parts, identities=identities)  # type: ignore[arg-type]


def unsecured(message: Message) -> Message:
    """Return a message without what secure aggregation added, for whoever trains."""
    content = RecordDict(
        {name: record for name, record in message.content.items() if name not in ("secured", "identities")}
    )
    plain = copy(message)
    plain.content = content
    return plain


def payload_of(message: Message) -> tuple[bytes, bytes]:
    """Return a train message's weights and instruction as bytes that both sides compute for themselves."""
    vector = message.content.array_records["phi"]["vector"]
    instruction = json.dumps(dict(message.content.config_records["instruction"]), sort_keys=True)
    return vector.data, instruction.encode()


def reply_secured(message: Message, secured: Secured) -> Message:
    """Return the reply to one of SECURE_QUERIES."""
    return Message(RecordDict(_secured_records(secured)), reply_to=message)


def reply_masked(message: Message, secured: Secured, masked: bytes) -> Message:
    """Return the reply to a secured `train`; `secured.answer` is the `Masked` record without its vector."""
    content = RecordDict(_secured_records(secured))
    content["masked"] = ArrayRecord({"vector": Array("uint8", (len(masked),), RAW, masked)})
    return Message(content, reply_to=message)


def read_masked(reply: Message) -> tuple[Secured, bytes]:
    """Return what `reply_masked` sent; WireError where it is not that."""
    secured, record = read_secured(reply), reply.content.array_records.get("masked")
    array = record.get("vector") if record is not None else None
    if array is None:
        raise WireError("a masked vector was asked for, and none came.")
    return secured, array.data


def _secured_records(secured: Secured) -> dict[str, Any]:
    parts = {name: getattr(secured, name) for name in ("run", "request", "holders", "answer", "dealing")}
    return {"secured": ConfigRecord(parts), "identities": ConfigRecord(dict(secured.identities))}


def refuse(message: Message, code: int, words: str) -> Message:
    """Return an error reply: a code and our own words."""
    return Message(Error(code=code, reason=words), reply_to=message)


def words_of(reply: Message) -> str:
    """Return why a reply is an error."""
    code, reason = reply.error.code, printable(reply.error.reason or "")
    return LINK_WORDS.get(code) or reason or WORDS.get(code, "it gave no reason.")


def vector(values: Float[Tensor, "parameter"]) -> ArrayRecord:
    """Return weights as the record that travels: the float32 values end to end, little-endian."""
    data = values.numpy().astype("<f4", copy=False).tobytes()
    return ArrayRecord({"vector": Array("float32", (len(values),), RAW, data)})


def _read_vector(
    records: Mapping[str, ArrayRecord], name: str, parameters: int
) -> Float[Tensor, "parameter"]:
    array = records[name].get("vector") if name in records else None
    if array is None or array.stype != RAW or len(array.data) != 4 * parameters:
        raise WireError(f"{name} must be one float32 vector of {parameters} parameters.")
    weights = torch.from_numpy(np.frombuffer(array.data, "<f4").astype(np.float32))
    if not torch.isfinite(weights.sum(dtype=torch.float64)):
        raise WireError(f"{name} must be finite; it holds NaN or infinity.")
    return weights
