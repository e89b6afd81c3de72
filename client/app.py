"""The ClientApp: unpack a message, call a pure function, pack its result. No mathematics here."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import wraps

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import few_shot
from client.classes import lesson
from client.dataset import Hospital
from client.floors import check_lesson
from client.part import Part, standardised
from client.policy import Kind, Policy, algorithms_of, at_most, check, policy_of
from client.secure import secured
from client.site import Node, hospital_of, prepare, size_of
from client.standard import accept
from common import weights, wire
from common.algorithms import ALGORITHMS
from common.columns import Statistics
from common.config import from_json
from common.errors import PolicyError, ProtocolError, TooSmallError, UnfitError, WireError, ZamenisError
from common.weights import Weights
from common.wire import Instruction

app = ClientApp(mods=[secured])
logger = logging.getLogger("zamenis.client")
Handler = Callable[[Message, Context], Message]


def _in_our_own_words(handler: Handler) -> Handler:
    """Turn every failure into a code and our own words; only this hospital's log has the rest."""

    @wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        try:
            if message.metadata.message_type not in wire.KINDS:
                raise WireError(f"there is no message of the kind {message.metadata.message_type!r}.")
            return handler(message, context)
        except ZamenisError as error:
            logger.warning("refused a %s message: %s", message.metadata.message_type, error)
            return wire.refuse(message, _code(error, context), _words(error, context))
        except Exception:
            logger.exception("a %s message failed", message.metadata.message_type)
            return wire.refuse(message, wire.FAILED, _signed(wire.WORDS[wire.FAILED], context))

    return guarded


def _code(error: ZamenisError, context: Context) -> int:
    if isinstance(error, PolicyError):
        return wire.FORBIDDEN
    if isinstance(error, ProtocolError):
        return wire.UNKNOWN_PROTOCOL
    if isinstance(error, UnfitError):
        return wire.UNFIT
    return wire.TOO_SMALL if isinstance(error, TooSmallError) and _explains(context) else wire.REFUSED


def _words(error: ZamenisError, context: Context) -> str:
    """Return what the coordinator is told: the whole error only where this hospital explains itself."""
    if isinstance(error, PolicyError) or _explains(context):
        return _without_paths(str(error), context)
    return _signed(wire.WORDS[_code(error, context)], context)


def _explains(context: Context) -> bool:
    """Return whether this hospital tells a coordinator why it refuses."""
    try:
        return policy_of(Node.of(context.node_config).policy_file).explain
    except ZamenisError:
        return False


def _signed(words: str, context: Context) -> str:
    return f"{context.node_config['site']}: {words}"


def _without_paths(words: str, context: Context) -> str:
    """Return our words with this hospital's name for its folders: no path leaves a hospital.

    They begin with the name, or that of the folder which they are about.
    """
    node = Node.of(context.node_config)
    names = {folder: node.site if len(node.folders) == 1 else folder.name for folder in node.folders}
    named = names | {folder.resolve(): name for folder, name in names.items()}
    named |= {file: file.name for file in (*node.states, *node.labels, node.policy_file) if file}
    for path in sorted(named, key=lambda one: len(str(one)), reverse=True):
        words = words.replace(str(path), named[path])
    told = re.match(rf"({'|'.join(map(re.escape, {node.site, *names.values()}))})[/:,]", words)
    return words if told else _signed(words, context)


def _open(message: Message, context: Context, kind: Kind) -> tuple[Instruction, Hospital]:
    instruction = wire.read_instruction(message)
    node = Node.of(context.node_config)
    sent = wire.parameters_of(message)
    check(policy_of(node.policy_file), kind, instruction, from_json(instruction.config), sent)
    prepare(node)
    hospital = hospital_of(node, instruction.config)
    check_sizes(policy_of(node.policy_file), kind, instruction, hospital)
    return instruction, hospital


def check_sizes(policy: Policy, kind: Kind, instruction: Instruction, hospital: Hospital) -> None:
    """Raise PolicyError where a network would be larger than is allowed; nothing is built for that."""
    shape = tuple(hospital.adaptation.inputs.shape[1:])
    for algorithm in algorithms_of(kind, instruction, from_json(instruction.config)):
        at_most(policy.max_parameters, size_of(shape, instruction.config, algorithm), "max-parameters")


def _part(message: Message, context: Context, kind: Kind) -> tuple[Instruction, Part]:
    """Return what is asked, and this hospital's part in it."""
    instruction, hospital = _open(message, context, kind)
    node, config = Node.of(context.node_config), from_json(instruction.config)
    if instruction.statistics:
        told = Statistics.from_json(instruction.statistics)
        hospital = standardised(hospital, told)
        if node.policy_file:
            accept(node.own_state, hospital, told, instruction.run if kind == "train" else None)
    return instruction, Part(node, hospital, config, instruction.algorithm, instruction.statistics)


def _phi(message: Message, part: Part) -> Weights:
    like = part.like()
    return weights.unpack(wire.read_phi(message, sum(value.numel() for value in like.values())), like)


@app.query("describe")
@_in_our_own_words
def describe(message: Message, context: Context) -> Message:
    """Say what this site is: its name, the shape of a case, counts; refuse a run it cannot take part in."""
    instruction, hospital = _open(message, context, "describe")
    for remark in hospital.census.warnings:
        logger.warning("%s: %s", context.node_config["site"], remark)
    config = from_json(instruction.config)
    policy = policy_of(Node.of(context.node_config).policy_file)
    for algorithm in config.experiment.algorithms:
        if ALGORITHMS[algorithm].local_update:
            taught, training = lesson(hospital, config, algorithm), config.training_of(algorithm)
            check_lesson(policy, taught, training, ALGORITHMS[algorithm])
    shape = tuple(hospital.adaptation.inputs.shape[1:])
    site = str(context.node_config["site"])
    assert hospital.told is not None  # noqa: S101 - it was opened
    told = wire.Description(site, shape, hospital.digest, hospital.told, hospital.columns, hospital.features)
    return wire.reply_description(message, told)


@app.query("advertise")
@app.query("deal")
@app.query("unmask")
@app.query("rehearse")
@app.query("finish")
def secure(message: Message, context: Context) -> Message:
    """Refuse: whoever has this hospital's secrets stands before this app (see `client.secure`)."""
    return wire.refuse(message, wire.INSECURE, _signed(wire.WORDS[wire.INSECURE], context))


@app.train()
@_in_our_own_words
def train(message: Message, context: Context) -> Message:
    """Run one local update and send its delta; or, where those are asked for, sums over numeric columns."""
    instruction, part = _part(message, context, "train")
    if instruction.column_sums:
        return wire.reply_contribution(message, part.sum_columns())
    phi = _phi(message, part)
    told = part.train(
        phi,
        run=instruction.run,
        server_round=instruction.server_round,
        clip=instruction.clip_norm,
        max_norm=policy_of(part.node.policy_file).max_norm,
    )
    return wire.reply_contribution(message, told)


@app.evaluate()
@_in_our_own_words
def evaluate(message: Message, context: Context) -> Message:
    """Adapt to K of this hospital's patients and test on its others, as often as asked."""
    instruction, part = _part(message, context, "evaluate")
    question = few_shot.Question(
        shot=instruction.shot,
        recipe=wire.decode_recipe(instruction.recipe) if instruction.recipe else None,
        draws=instruction.draws,
        replicates=instruction.replicates,
        purpose=instruction.purpose,
    )
    return wire.reply_judgement(message, part.judge(_phi(message, part)).answer(question))
