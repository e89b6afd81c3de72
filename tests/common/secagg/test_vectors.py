"""Keystreams, packing and layouts: the arithmetic of one vector."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SecAggError
from common.secagg import vector
from common.secagg.agreement import public_of
from common.secagg.encoding import dump
from common.secagg.layout import Layout, Metric
from common.secagg.masking import PIECE, Keystream, Mask, Masks, pair_mask, pieces, self_mask
from common.secagg.packing import Packed
from common.secagg.quantise import Contribution, clip_factor
from common.secagg.vector import MaskedSum

GOLDEN = Path(__file__).parent / "golden" / "vector.json"
KEY = bytes(range(32))


def test_keystream_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, 6.5: block n of the keystream is AES-256 of the number n, counted from zero."""
    words = np.empty(8, np.uint64)
    Keystream(KEY).read_into(words)
    block = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()  # noqa: S305 - the bare block cipher
    counters = b"".join(number.to_bytes(16, "big") for number in range(4))
    assert words.astype("<u8").tobytes() == block.update(counters)


def test_the_block_cipher_is_aes_256() -> None:
    """FIPS 197, appendix C.3: key 00 01 .. 1f, plaintext 00 11 .. ff."""
    block = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()  # noqa: S305 - the bare block cipher
    plain = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert block.update(plain).hex() == "8ea2b7ca516745bfeafc49904b496089"


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5), st.integers(1, 200))
def test_a_mask_and_its_opposite_cancel(keys: list[bytes], size: int) -> None:
    """Whatever the order, modulo 2^64; and without the opposite the vector is another."""
    before = np.arange(size, dtype=np.uint64) * np.uint64(2**59 + 1)
    words = before.copy()
    Masks([Mask(key) for key in keys]).apply(words)
    assert not np.array_equal(words, before)
    Masks([Mask(key).opposite() for key in reversed(keys)]).apply(words)
    assert np.array_equal(words, before)


def test_pieces_are_one_keystream() -> None:
    """Piece by piece, the mask of a long vector is one keystream from its start."""
    size = 2 * PIECE + 5
    words = np.zeros(size, np.uint64)
    masks = Masks([Mask(KEY)])
    for piece in pieces(size):
        masks.apply(words[piece])
    encryptor = Cipher(algorithms.AES256(KEY), modes.CTR(bytes(16))).encryptor()
    assert encryptor.update(bytes(8 * size)) == words.astype("<u8").tobytes()


def test_masks_depend_on_all_that_was_agreed() -> None:
    """Another run, slot, D or site is another mask, alone or in pairs; a pair's two ends are opposite."""
    theirs = bytes(reversed(KEY))
    here, there = public_of(KEY), public_of(theirs)
    pair = pair_mask(KEY, "a", "b", there, "run", 1, b"D")
    assert pair_mask(theirs, "b", "a", here, "run", 1, b"D") == pair.opposite()
    masks = [pair, self_mask(KEY, "run", 1, b"D", "a"), self_mask(KEY, "run", 1, b"D", "b")]
    for run, slot, agreed in (("run", 1, b"E"), ("run", 2, b"D"), ("ran", 1, b"D")):
        masks += [pair_mask(KEY, "a", "b", there, run, slot, agreed), self_mask(KEY, run, slot, agreed, "a")]
    masks.append(pair_mask(KEY, "a", "c", there, "run", 1, b"D"))
    assert len({mask.key for mask in masks}) == len(masks)


@pytest.mark.parametrize("size", range(1, 9))
def test_packing_keeps_the_low_bytes(size: int) -> None:
    """All sizes, any length, piece by piece: what is read back is the words modulo 256^size."""
    chance = np.random.default_rng(size)
    for length in (1, 7, 1000):
        words = chance.integers(0, 2**64, length, dtype=np.uint64)
        packed = Packed(length, size)
        again = np.ones(length, np.uint64)
        for start in range(0, length, 40):
            packed.write(slice(start, start + 40), words[start : start + 40])
        data = packed.data.tobytes()
        assert len(data) == length * size
        for start in range(0, length, 24):
            Packed(length, size, data).add_to(slice(start, start + 24), again[start : start + 24])
        assert np.array_equal(again - np.uint64(1), words & np.uint64(2 ** (8 * size) - 1))


def test_a_packed_vector_has_one_length() -> None:
    """A byte more or fewer is refused."""
    for wrong in (69, 71):
        with pytest.raises(SecAggError) as caught:
            Packed(10, 7, bytes(wrong))
        assert caught.value.reason == "wrong-length"


def test_numbers_share_words() -> None:
    """Lanes fill a word as far as they fit; what travels is rounded up to a byte per word."""
    for sites, weight, width, lanes, word_bytes in (
        (3, 1, 18, 3, 7),
        (10, 1, 20, 3, 8),
        (20, 1, 21, 3, 8),
        (20, 12, 24, 2, 6),
        (256, 1, 24, 2, 6),
        (255, 256, 32, 2, 8),
    ):
        layout = Layout(1_000_000, sites, 1.0, 1.0, max_weight=weight)
        assert (layout.width, layout.lanes, layout.word_bytes) == (width, lanes, word_bytes)
        assert layout.words * lanes - layout.elements in range(lanes)


def rounded(layout: Layout, contributions: list[Contribution]) -> MaskedSum:
    """Return the sum of the contributions without any mask."""
    total = MaskedSum(layout)
    for contribution in contributions:
        total.add(vector.mask(layout, contribution, []))
    return total


def test_the_bound_holds_for_the_largest_numbers() -> None:
    """Widest layouts, largest weights, coordinates at and beyond the range: the bound holds."""
    for bits, sites, weight in ((16, 256, 1), (16, 1, 256), (24, 4, 64), (2, 3, 5), (16, 65536, 1)):
        layout = Layout(6, sites, 1e9, 0.75, bits, weight, (Metric("loss", -2, 2, 2**-40),))
        edge = np.array([-9.0, -0.75, 0.0, 0.7499999, 0.75, 9.0], np.float32)
        many = min(sites, 40)
        given_ = [Contribution(edge, weight, {"loss": 1.5}, bytes([place] * 32)) for place in range(many)]
        total = rounded(layout, given_).total([], many)
        assert total.weight == many * weight
        assert total.metrics["loss"] == 1.5 * many
        error = np.abs(total.mean - np.clip(edge.astype(np.float64), -0.75, 0.75))
        assert error.max() <= layout.error_bound(many, total.weight)
        assert total.mean[2] == 0.0


@given(st.integers(2, 24), st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**32))
def test_no_sum_overflows(bits: int, sites: int, weight: int, seed: int) -> None:
    """The k bits hold the largest sum, and one bit fewer does not; limbs keep to them too."""
    if sites * weight * (2**bits - 2) >= 2**32:
        with pytest.raises(SecAggError, match="32 bits"):
            Layout(3, sites, 1e9, 1.0, bits, weight)
        return
    layout = Layout(3, sites, 1e9, 1.0, bits, weight)
    assert sites * weight * layout.levels < 2**layout.width <= 2 * sites * weight * layout.levels
    assert sites * (2**layout.limb_bits - 1) < 2**layout.width
    top = Contribution(np.full(3, 1.0, np.float32), weight, {}, seed.to_bytes(32, "big"))
    assert np.abs(rounded(layout, [top] * sites).total([], sites).mean - 1.0).max() <= 2**-50


def test_vectors_of_several_pieces_are_summed_and_clipped_as_one() -> None:
    """Three pieces and a part of one in each of three lanes: every coordinate, and the norm of all."""
    parameters = 3 * (3 * PIECE + 1000)
    layout = Layout(parameters, 2, 1e9, 1.0)
    assert layout.lanes == 3
    delta = np.random.default_rng(0).uniform(-1, 1, parameters).astype(np.float32)
    keys = [bytes([place] * 32) for place in range(2)]
    total = rounded(layout, [Contribution(delta, 1, {}, key) for key in keys]).total([], 2)
    assert np.abs(total.mean - delta).max() <= layout.error_bound(2, 2)
    assert clip_factor(np.ones(parameters, np.float32), 1.0) == pytest.approx(parameters**-0.5)
    masks = [Mask(KEY, negative=False), Mask(KEY, negative=True)]
    contribution = Contribution(delta, 1, {}, KEY)
    assert vector.mask(layout, contribution, masks) == vector.mask(layout, contribution, [])


def test_the_bound_is_a_step_and_a_rounding() -> None:
    """A step a site over all weight, 2^-18 more, and 2^-50 of the range; in floats, whatever is given."""
    layout = Layout(2, 5, 1, 3, max_weight=7)
    assert layout.error_bound(3, 5) == 3 * layout.step / 5 * (1 + 2**-18) + 3 * 2**-50
    assert dump(layout) == dump(Layout(2, 5, 1.0, 3.0, max_weight=7))


def test_what_rounding_adds_to_a_norm_is_no_lie() -> None:
    """Ten thousand small coordinates on a coarse grid: their rounded mean is longer than the clip allows."""
    layout = Layout(10_000, 2, 1.0, 1.0, bits=4)
    delta = np.full(10_000, 0.01, np.float32)
    mean = (
        rounded(layout, [Contribution(delta, 1, {}, bytes([place] * 32)) for place in range(2)])
        .total([], 2)
        .mean
    )
    assert float(np.linalg.norm(mean)) > 2


def test_metrics_are_rounded_without_bias() -> None:
    """Four hundred halves sum up to 200 within five standard errors."""
    layout = Layout(1, 400, 1.0, 1.0, metrics=(Metric("episodes", 0, 1),))
    zero = np.zeros(1, np.float32)
    given_ = [Contribution(zero, 1, {"episodes": 0.5}, place.to_bytes(32, "big")) for place in range(400)]
    assert abs(rounded(layout, given_).total([], 400).metrics["episodes"] - 200) < 5 * 10


def test_rounding_is_unbiased() -> None:
    """20,000 roundings of 0.3 steps average 0.3 within 5 standard errors of sqrt(0.3 * 0.7 / 20,000)."""
    layout = Layout(20_000, 1, 1e9, 1.0)
    delta = np.full(20_000, 0.3 * layout.step, np.float32)
    mean = rounded(layout, [Contribution(delta, 1, {}, KEY)]).total([], 1).mean
    assert set(np.round(mean / layout.step)) == {0.0, 1.0}
    assert abs(mean.mean() / layout.step - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 20_000)


def test_rounding_repeats_by_its_key() -> None:
    """The same key gives the same bytes, another key others."""
    layout = Layout(100, 1, 1.0, 1.0, metrics=(Metric("loss", 0, 1, 2**-20),))
    delta = np.linspace(-0.1, 0.1, 100, dtype=np.float32)
    one, same, other = (
        vector.mask(layout, Contribution(delta, 1, {"loss": 1 / 3}, key), []) for key in (KEY, KEY, bytes(32))
    )
    assert one == same != other


def test_metrics_travel_in_limbs() -> None:
    """Wide metrics do not widen the vector; multiples of the resolution are exact, the rest clipped."""
    metrics = (Metric("cases", 0, 1_000_000), Metric("loss", -8, 8, 2**-32), Metric("clipped", 0, 1))
    layout = Layout(4, 5, 1.0, 1.0, metrics=metrics)
    assert layout.width == (5 * (2**16 - 2)).bit_length() == 19
    assert layout.limb_bits == 16
    assert layout.elements == 4 + 1 + 2 + 3 + 1  # 20 and 37 bits need 2 and 3 limbs of 16
    zero = np.zeros(4, np.float32)
    told = [{"cases": 999_999.0 - i, "loss": i / 7 - 1, "clipped": 0.5 * i} for i in range(5)]
    total = rounded(layout, [Contribution(zero, 1, each, KEY) for each in told]).total([], 5)
    assert total.metrics["cases"] == sum(each["cases"] for each in told)
    assert abs(total.metrics["loss"] - sum(each["loss"] for each in told)) < 5 * 2**-32
    assert total.metrics["clipped"] in (3.0, 4.0)  # 0, 0.5, 1, 1, 1: the half goes either way
    assert total.mean.tolist() == [0.0] * 4


def test_long_deltas_are_shortened() -> None:
    """A delta of norm 5 is scaled to the norm 2; a shorter one, and one of zeros, stay."""
    delta = np.array([3.0, 4.0], np.float32)
    assert clip_factor(delta, 2.0) == pytest.approx(0.4)
    assert clip_factor(delta, 5.0) == 1.0
    assert clip_factor(np.zeros(2, np.float32), 1.0) == 1.0
    layout = Layout(2, 1, 2.0, 10.0)
    mean = rounded(layout, [Contribution(delta, 1, {}, KEY)]).total([], 1).mean
    assert np.abs(mean - [1.2, 1.6]).max() <= layout.error_bound(1, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"delta": np.zeros(3, np.float32)},
        {"delta": np.zeros(2, np.float64)},
        {"delta": np.array([0, np.nan], np.float32)},
        {"delta": np.array([0, -np.inf], np.float32)},
        {"weight": 0},
        {"weight": 4},
        {"metrics": {}},
        {"metrics": {"loss": 1.0, "more": 1.0}},
        {"metrics": {"loss": math.nan}},
        {"rounding_key": b"short"},
    ],
    ids=str,
)
def test_a_contribution_that_does_not_fit_is_refused(wrong: dict[str, object]) -> None:
    """By name, with a text that is the same whatever the numbers were."""
    layout = Layout(2, 3, 1.0, 1.0, max_weight=3, metrics=(Metric("loss", 0, 9),))
    right: dict[str, object] = {
        "delta": np.zeros(2, np.float32),
        "weight": 1,
        "metrics": {"loss": 1.0},
        "rounding_key": KEY,
    }
    vector.mask(layout, Contribution(**right), [])  # type: ignore[arg-type]
    with pytest.raises(SecAggError) as caught:
        vector.mask(layout, Contribution(**{**right, **wrong}), [])  # type: ignore[arg-type]
    assert caught.value.reason == "bad-contribution"
    assert not any(character.isdigit() for character in str(caught.value))


def test_a_layout_has_bounds() -> None:
    """Settings that mean nothing are refused, and so are sums beyond 32 bits."""
    for wrong in (
        {"parameters": 0},
        {"sites": 0},
        {"clip_norm": 0.0},
        {"coordinate_range": math.inf},
        {"bits": 1},
        {"bits": 25},
        {"max_weight": 0},
        {"metrics": (Metric("a", 0, 1), Metric("a", 0, 1))},
        {"metrics": (Metric("weight", 0, 1),)},
    ):
        right: dict[str, object] = {"parameters": 2, "sites": 2, "clip_norm": 1.0, "coordinate_range": 1.0}
        with pytest.raises(SecAggError) as caught:
            Layout(**{**right, **wrong})  # type: ignore[arg-type]
        assert caught.value.reason == "bad-layout"
    with pytest.raises(SecAggError) as caught:
        Layout(2, 1000, 1.0, 1.0, max_weight=1000)
    assert caught.value.reason == "overflow"
    for low, high, resolution in ((1, 1, 1), (0, math.inf, 1), (0, 1, 0), (0, 1, 1e-30)):
        with pytest.raises(SecAggError):
            Metric("loss", low, high, resolution)


def test_a_sum_that_honest_sites_cannot_make_is_refused() -> None:
    """Each bound by itself: weights, coordinates, metrics, norm; what lies just within them is taken."""
    layout = Layout(2, 4, 1.0, 1.0, metrics=(Metric("loss", 0, 3),))
    zero = 2 * layout.levels
    one = 4 * layout.levels
    for numbers, possible in (
        ([zero, zero, 4, 12], True),
        ([one, zero, 4, 0], True),
        ([0, 0, 0, 0], False),  # no weight at all
        ([zero * 3 // 4, zero * 3 // 4, 3, 0], False),  # less weight than survivors
        ([zero * 5 // 4, zero * 5 // 4, 5, 0], False),  # more weight than four sites have
        ([one + 1, zero, 4, 0], False),  # a coordinate above the range, its norm still within the bound
        ([zero, zero, 4, 13], False),  # a metric above 4 x 3
        ([one, one, 4, 0], False),  # within the range, but of norm sqrt(2)
    ):
        assert (layout.lanes, layout.words) == (3, 2)
        first, second, third, fourth = numbers
        words = np.array([first | third << layout.width, second | fourth << layout.width], np.uint64)
        packed = Packed(2, layout.word_bytes)
        packed.write(slice(0, 2), words)
        total = MaskedSum(layout)
        total.add(packed.data.tobytes())
        if possible:
            assert total.total([], 4).metrics["loss"] == numbers[3]
        else:
            with pytest.raises(SecAggError) as caught:
                total.total([], 4)
            assert caught.value.reason == "impossible-sum"


def test_masked_bytes_never_change() -> None:
    """Known answers: a contribution under two masks, three numbers of 19 bits in 8 bytes."""
    golden = json.loads(GOLDEN.read_text())
    layout = Layout(5, 5, 1.0, 0.5, metrics=(Metric("loss", 0, 10, 0.001),))
    delta = np.array([0.0, 0.1, -0.2, 0.5, -0.7], np.float32)
    contribution = Contribution(delta, 1, {"loss": 2.5}, KEY)
    masks = [Mask(bytes(32)), Mask(KEY, negative=True)]
    assert vector.mask(layout, contribution, []).hex() == golden["quantised"]
    assert vector.mask(layout, contribution, masks).hex() == golden["masked"]
