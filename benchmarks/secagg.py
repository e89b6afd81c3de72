"""Masking, packing and unmasking a million parameters, against Flower's SecAgg+ and the bare keystream.

    python benchmarks/secagg.py [--quick]

Everything is computed in one run, in one thread, on the same delta. Flower's side calls its own functions
in the order of its client mod and server workflow (secaggplus_mod, SecAggPlusWorkflow) with their default
ranges; neither side's key agreement is timed, except in the last row, a site's whole transition with all
checks. Times are the process's processor time, so that others on the machine matter less. Every repetition
times contender once; times are medians, ratios are medians of the repetitions' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common import bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    factor_extract,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from rich.console import Console
from rich.table import Table

from common.secagg import aggregator, site, vector
from common.secagg.encoding import dump
from common.secagg.entropy import fresh
from common.secagg.identity import Identity, Peer, Roster
from common.secagg.layout import Layout, Metric
from common.secagg.masking import PIECE, Mask, Masks, pieces
from common.secagg.messages import Payload
from common.secagg.numbers import Policy
from common.secagg.quantise import Contribution

PARAMETERS, PEERS, SITES, DROPPED = 1_000_000, 20, 20, 6
CLIPPING, TARGET, MODULUS = 8.0, 1 << 22, 1 << 32
"""Flower's defaults (SecAggPlusWorkflow)."""
METRICS = (Metric("loss", 0, 100, 2**-20), Metric("episodes", 0, 1000), Metric("cases", 0, 1_000_000))
Contender = Callable[[], Any]


def bare_keystream(keys: list[bytes], words: int) -> None:
    """Generate the same bytes as the masks of these keys, and nothing else."""
    zeros, stream = memoryview(bytes(8 * PIECE)), memoryview(bytearray(8 * PIECE))
    for key in keys:
        encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        for piece in pieces(words):
            size = 8 * (piece.stop - piece.start)
            encryptor.update_into(zeros[:size], stream[:size])


def flower_masked(parameters: list[Any], keys: list[bytes]) -> list[Any]:
    """Add one mask per key as Flower's client does, then take the modulus."""
    shapes = [array.shape for array in parameters]
    for place, key in enumerate(keys):
        mask = pseudo_rand_gen(key, MODULUS, shapes)
        combine = parameters_addition if place % 2 else parameters_subtraction
        parameters = combine(parameters, mask)
    return parameters_mod(parameters, MODULUS)


def flower_upload(delta: Any, keys: list[bytes]) -> list[bytes]:
    """Return what Flower's client sends: weighted, quantised, masked, serialised."""
    ratio = round(0.02 * TARGET)
    quantised = quantize(parameters_multiply([delta], ratio / TARGET), CLIPPING, TARGET)
    return [ndarray_to_bytes(array) for array in flower_masked(factor_combine(ratio, quantised), keys)]


def flower_opened(summed: list[Any], keys: list[bytes]) -> Any:
    """Return the mean that Flower's server gets once it has every seed of a mask that is left."""
    ratio, quantised = factor_extract(flower_masked(summed, keys))
    mean = parameters_multiply(dequantize(quantised, CLIPPING, TARGET), TARGET / max(int(ratio), 1))
    return mean[0] + (SITES - 1) * CLIPPING


def timed(contenders: dict[str, Contender], repeats: int) -> dict[str, list[float]]:
    """Return each contender's seconds, one per repetition, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(repeats):
        for name, contender in contenders.items():
            started = time.process_time()
            contender()
            seconds[name].append(time.process_time() - started)
    return seconds


class Round:
    """One real slot of 20 sites with a million parameters, up to the point where the first site masks."""

    def __init__(self, max_weight: int) -> None:
        names = [f"hospital-{number:02d}" for number in range(SITES)]
        identities = {name: Identity.make() for name in names}
        roster = Roster({name: Peer(each.public, confirmed=True) for name, each in identities.items()})
        self.members = {name: site.Member(name, identities[name], roster, Policy()) for name in names}
        self.states = {name: site.join(member, "run", 1) for name, member in self.members.items()}
        advertisements = [site.advertise(self.states[name], self.members[name]) for name in names]
        self.holders = aggregator.name_holders("run", 1, advertisements)
        dealings = {}
        for name in names:
            self.states[name], dealings[name] = site.deal(self.states[name], self.members[name], self.holders)
        self.layout = Layout(PARAMETERS, SITES, 100.0, 0.1, 16, max_weight, METRICS)
        self.payload = Payload.of(b"weights", b"configuration")
        self.requests = aggregator.mask_requests(self.holders, dealings.values(), self.payload, self.layout)
        self.slot = aggregator.Slot(roster, self.holders, self.requests[names[0]].plan)
        self.dealing_bytes = len(dump(dealings[names[0]]))

    def mask(self, name: str, contribution: Contribution) -> tuple[site.SiteRun, Any]:
        """Return the whole transition of one site: checks, key agreement, quantising, masking, packing."""
        return site.mask(
            self.states[name], self.members[name], self.requests[name], self.payload, contribution
        )

    def bytes_up(self, contribution: Contribution) -> dict[str, int]:
        """Return the bytes that the first site sends in a round, after playing the slot to its end."""
        sizes = {"dealing": self.dealing_bytes}
        for name in self.members:
            self.states[name], masked = self.mask(name, contribution)
            self.slot.add(masked)
            sizes["masked"] = len(dump(masked))
        request = self.slot.request()
        for name, member in self.members.items():
            self.states[name], answer = site.unmask(self.states[name], member, request)
            self.slot.answer(answer)
            sizes["answer"] = len(dump(answer))
        total = self.slot.finish().total
        error = np.abs(total.mean - contribution.delta.clip(-0.1, 0.1)).max()
        assert error <= self.layout.error_bound(SITES, total.weight) + 1e-8
        return sizes


def main() -> None:
    """Print the tables and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 repetitions instead of 9")
    repeats = 3 if parser.parse_args().quick else 9
    delta = np.random.default_rng(0).normal(scale=0.02, size=PARAMETERS).astype(np.float32)
    contribution = Contribution(delta, 1, {"loss": 12.5, "episodes": 4.0, "cases": 300.0}, fresh(32))
    uniform, weighted = Round(max_weight=1), Round(max_weight=256 // SITES)
    layout = uniform.layout
    keys = [fresh(32) for _ in range(PEERS)]
    masks = [Mask(key, negative=place % 2 == 0) for place, key in enumerate(keys)]
    quantised = [np.zeros(PARAMETERS, np.int32)]
    with_own, own_too = [*masks, Mask(fresh(32))], [*keys, fresh(32)]
    packed = vector.mask(layout, contribution, with_own)
    sent = flower_upload(delta, own_too)
    arrived = [bytes_to_ndarray(data) for data in sent]
    first = next(iter(uniform.members))

    def ours_masks(length: int) -> Contender:
        words = np.zeros(length, np.uint64)

        def apply() -> None:
            together = Masks(masks)
            for piece in pieces(length):
                together.apply(words[piece])

        return apply

    def ours_add() -> None:
        vector.MaskedSum(layout).add(packed)

    def ours_unmask(count: int) -> Contender:
        undo = [Mask(fresh(32)).opposite() for _ in range(count)]
        summed = vector.mask(layout, contribution, [mask.opposite() for mask in undo])

        def unmask() -> None:
            total = vector.MaskedSum(layout)
            total.add(summed)
            total.total(undo, 1)

        return unmask

    def flower_unmask(count: int) -> Contender:
        undo = [fresh(32) for _ in range(count)]
        return lambda: flower_opened(arrived, undo)

    without, with_dropouts = SITES, (SITES - DROPPED) * (1 + DROPPED)
    pairs: dict[str, dict[str, Contender]] = {
        f"add the masks of {PEERS} peers": {
            "ours": ours_masks(layout.words),
            "flower": lambda: flower_masked(quantised, keys),
            "bare keystream": lambda: bare_keystream(keys, layout.words),
        },
        "the same, weights to 12": {
            "ours": ours_masks(weighted.layout.words),
            "flower": lambda: flower_masked(quantised, keys),
            "bare keystream": lambda: bare_keystream(keys, weighted.layout.words),
        },
        "quantise, mask and pack": {
            "ours": lambda: vector.mask(layout, contribution, with_own),
            "flower": lambda: flower_upload(delta, own_too),
        },
        "quantise, mask and pack, weights to 12": {
            "ours": lambda: vector.mask(weighted.layout, contribution, with_own),
            "flower": lambda: flower_upload(delta, own_too),
        },
        "server: add one vector": {
            "ours": ours_add,
            "flower": lambda: parameters_addition(arrived, [bytes_to_ndarray(data) for data in sent]),
        },
        f"server: unmask {SITES}, none dropped": {
            "ours": ours_unmask(without),
            "flower": flower_unmask(without),
        },
        f"server: unmask {SITES}, 30 % dropped": {
            "ours": ours_unmask(with_dropouts),
            "flower": flower_unmask(with_dropouts),
        },
        "site: the whole masking transition": {"ours": lambda: uniform.mask(first, contribution)},
    }
    report(pairs, repeats, {"uniform": uniform, "weights to 12": weighted}, contribution)


def report(
    pairs: dict[str, dict[str, Contender]], repeats: int, rounds: dict[str, Round], contribution: Contribution
) -> None:
    """Time, weigh and print everything."""
    console, figures = Console(), dict[str, Any](parameters=PARAMETERS, peers=PEERS, sites=SITES)
    table = Table(title=f"{PARAMETERS:,} parameters, milliseconds (median of {repeats})")
    for column in ("what", "ours", "Flower", "x faster", "bare keystream", "ours / bare"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, contenders in pairs.items():
        seconds = timed(contenders, repeats)
        cells, figure = {}, {}
        for name, times in seconds.items():
            figure[f"{name}_ms"] = round(1000 * statistics.median(times), 2)
            cells[name] = f"{figure[f'{name}_ms']:.1f}"
        if "flower" in seconds:
            figure["times_faster"] = round(_ratio(seconds["flower"], seconds["ours"]), 2)
        if "bare keystream" in seconds:
            figure["over_bare"] = round(_ratio(seconds["ours"], seconds["bare keystream"]), 3)
        table.add_row(
            what,
            cells["ours"],
            cells.get("flower", ""),
            str(figure.get("times_faster", "")),
            cells.get("bare keystream", ""),
            str(figure.get("over_bare", "")),
        )
        figures[what] = figure
    console.print(table)
    upload = Table(title=f"Bytes up per site and round, {SITES} sites, 16-bit values, three metrics")
    for column in ("weights", "bits", "masked", "dealing", "answer", "of float32"):
        upload.add_column(column, justify="left" if column == "weights" else "right")
    for name, played in rounds.items():
        sizes = played.bytes_up(contribution)
        share = sum(sizes.values()) / (4 * PARAMETERS)
        row = [f"{sizes[kind]:,}" for kind in ("masked", "dealing", "answer")]
        upload.add_row(name, str(played.layout.width), *row, f"{share:.4f}")
        figures[f"upload, {name}"] = {**sizes, "bits": played.layout.width, "of_float32": round(share, 4)}
    console.print(upload)
    figures["exchanges"] = {"ours": 2, "flower": 4}
    console.print("Exchanges a round: 2 (train, unmask); Flower 4 (setup, share keys, collect, unmask).")
    print(json.dumps(figures))


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


if __name__ == "__main__":
    main()
