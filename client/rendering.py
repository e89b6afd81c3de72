"""From a stored frame to what a viewer would show, as float32 in [0, 1].

In the Standard's order (PS3.4 N.2): modality transformation, values of interest, photometric interpretation.
Rescale and window are linear in nearly every file, so they become one subtraction and one multiplication in
place.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut
from torch import Tensor

from client.elements import Elements
from client.frames import Stored
from client.preflight import Reason, refuse


class _Scratch(threading.local):
    """Memory for one frame as float32, kept per thread: fresh pages cost more than the arithmetic on them."""

    memory = torch.empty(0)

    def hold(self, frame: Stored) -> Float[Tensor, "*shape"]:
        """Return `frame` as float32; it stands until the next call of the same thread."""
        if self.memory.numel() < frame.size:
            self.memory = torch.empty(frame.size)
        held = self.memory[: frame.size].view(frame.shape)
        np.copyto(held.numpy(), frame)
        return held


_SCRATCH = _Scratch()


def render(frame: Stored, elements: Elements) -> Float[Tensor, "channel height width"]:
    """Return a frame as RGB, or as one channel of grey; it stands until the next call of the same thread.

    Where the file's own numbers overflow, what is shown is not finite. Raises Refused where they are none.
    """
    if elements.PhotometricInterpretation == "PALETTE COLOR":
        return _scaled(*_through_palette(frame, elements))
    if elements.SamplesPerPixel > 1:
        return _scaled(frame, int(elements.BitsStored))
    return _grey(frame, elements)


def _scaled(frame: Stored, bits: int) -> Float[Tensor, "3 height width"]:
    return _SCRATCH.hold(frame).div_(2**bits - 1).clamp_(0, 1).permute(2, 0, 1)


def _through_palette(frame: Stored, elements: Elements) -> tuple[Stored, int]:
    """Return indices as RGB, and the bits of its values (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6).

    A table of 16 bits whose entries all have 8 is taken as one of 8, as its note tells of old devices.
    """
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    if any(f"{name}Data" not in elements for name in names):  # in segments
        rgb = apply_color_lut(frame, elements.dataset)[..., :3]
        return rgb, 8 * rgb.itemsize
    tables = [
        _table(getattr(elements, f"{name}Descriptor"), getattr(elements, f"{name}Data"), elements)
        for name in names
    ]
    bits = 16 if max(int(entries.max()) for entries, _ in tables) > 255 else 8
    first = _signed(tables[0][1], signed=bool(elements.PixelRepresentation))
    return np.stack([_look_up(frame, entries, first) for entries, _ in tables], axis=-1), bits


def _grey(frame: Stored, elements: Elements) -> Float[Tensor, "1 height width"]:
    """Return a stored frame as shown: modality, VOI, polarity; pixel padding (C.7.5.1.1.2) is black."""
    padding = _padding(frame, elements)
    shown = _of_interest(frame, elements, padding)
    if _inverted(elements):
        shown.neg_().add_(1)
    if padding is not None:
        shown[torch.from_numpy(padding)] = 0
    return shown[None]


def _inverted(elements: Elements) -> bool:
    """Return whether low values are white: by PresentationLUTShape (PS3.3 C.11.6.1), else by polarity.

    The two agree where the Standard asks for both (C.8.11.3); where they do not, the shape comes last in its
    order, and dcmtk goes by it.
    """
    shape = str(elements.get("PresentationLUTShape") or "").strip().upper()
    if shape in ("IDENTITY", "INVERSE"):
        return shape == "INVERSE"
    return bool(elements.PhotometricInterpretation == "MONOCHROME1")


def _padding(frame: Stored, elements: Elements) -> NDArray[np.bool_] | None:
    """Return where the scanner measured nothing, or None where the file names no padding value."""
    first = elements.get("PixelPaddingValue")
    if first is None:
        return None
    last = elements.get("PixelPaddingRangeLimit", first)
    signed = bool(elements.PixelRepresentation)
    low, high = sorted(_signed(int(end) % 2**16, signed=signed) for end in (first, last))
    return np.asarray((frame >= low) & (frame <= high))


def _of_interest(
    frame: Stored, elements: Elements, padding: NDArray[np.bool_] | None
) -> Float[Tensor, "height width"]:
    """Return modality values (PS3.3 C.11.1) in [0, 1] by VOI LUT, window, or own range (C.11.2)."""
    slope, intercept = 1.0, 0.0
    signed = bool(elements.PixelRepresentation)
    if modality := elements.get("ModalityLUTSequence"):
        entries, first, _ = _item(modality[0], elements)
        frame, signed = _look_up(frame, entries, _signed(first, signed=signed)), False
    else:
        slope, intercept = _rescale(elements)
        signed = signed or slope < 0 or intercept < 0
    if (voi := elements.get("VOILUTSequence")) and "LUTData" in voi[0]:
        entries, first, bits = _item(voi[0], elements)
        values = np.rint(frame * slope + intercept).astype(np.int64)
        return _SCRATCH.hold(_look_up(values, entries, _signed(first, signed=signed))).div_(2**bits - 1)
    values = _SCRATCH.hold(frame)
    window = _window(elements)
    if window is None:
        low, high = _range(frame, padding)
        turned = slope < 0
        values.sub_(high if turned else low).mul_(math.copysign(1 / max(high - low, 1e-12), slope))
        return values.clamp_(0, 1)
    low, width, function = window
    if width == 0:
        return (values * slope + intercept > low).to(torch.float32)
    values.mul_(slope / width).add_((intercept - low) / width)
    return values.sub_(0.5).mul_(4).sigmoid_() if function == "SIGMOID" else values.clamp_(0, 1)


def _rescale(elements: Elements) -> tuple[float, float]:
    """Return RescaleSlope and RescaleIntercept; 1 and 0 where the file has none."""
    slope, intercept = (_first(elements.get(keyword)) for keyword in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if slope == 0 or not math.isfinite(slope + intercept):
        raise refuse(Reason.UNREADABLE, "Export the file again with a RescaleSlope other than 0.")
    return slope, intercept


def _window(elements: Elements) -> tuple[float, float, str] | None:
    """Return the first window's lower edge, width and function; None where the file has none that is valid.

    LINEAR spans c - 0.5 -+ (w - 1) / 2, LINEAR_EXACT and SIGMOID c -+ w / 2 (PS3.3 C.11.2.1.2, C.11.2.1.3).
    """
    try:
        center, width = (_first(elements.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    except ValueError:  # a decimal comma
        return None
    if center is None or width is None or not math.isfinite(center + width):
        return None
    function = str(elements.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise refuse(Reason.UNREADABLE, "Export the file again with a VOILUTFunction of the Standard.")
    if function == "LINEAR":
        return (center - 0.5 - (width - 1) / 2, width - 1, function) if width >= 1 else None
    return (center - width / 2, width, function) if width > 0 else None


def _first(value: object) -> float | None:
    """Return a decimal string's first value as a number; None where it is absent or empty."""
    if value is None or value == "":
        return None
    if isinstance(value, str | int | float):
        return float(value)
    values = list(value)  # type: ignore[call-overload]
    return float(values[0]) if values and values[0] not in (None, "") else None


def _range(frame: Stored, padding: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Return the lowest and highest stored value that was measured."""
    measured = frame if padding is None else frame[~padding]
    return (float(measured.min()), float(measured.max())) if measured.size else (0.0, 0.0)


def _signed(value: int, *, signed: bool) -> int:
    """Return a stored value of 16 bits by the sign of the values beside it, however its own VR has it.

    In implicit VR the reader chooses between US and SS, and devices write either (PS3.3 C.7.5.1.1.2).
    """
    return value - 2**16 if signed and value >= 2**15 else value


def _item(item: Dataset, elements: Elements) -> tuple[Stored, int, int]:
    """Return the entries of an item of a LUT sequence, the value of the first, and their bits."""
    entries, first = _table(item.LUTDescriptor, item.LUTData, elements)
    return entries, first, int(item.LUTDescriptor[2])


def _table(descriptor: Any, data: Any, elements: Elements) -> tuple[Stored, int]:
    """Return a lookup table's entries, and the value of the first (PS3.3 C.7.6.3.1.5, C.11.1.1, C.11.2.1.1).

    Entries of 8 bits may stand two in a word, the first in its low byte (PS3.5, annex D).
    """
    count, first, bits = (int(number) for number in descriptor)
    count = count or 2**16
    order = "<u2" if elements.little else ">u2"
    words = (
        np.frombuffer(data, order) if isinstance(data, bytes) else np.atleast_1d(np.asarray(data, np.uint16))
    )
    if bits == 8 and len(words) < count:
        words = words.astype("<u2").view(np.uint8)
    if len(words) < count:
        raise refuse(Reason.UNREADABLE, "Export the file again: a lookup table ends early.")
    return words[:count], first


def _look_up(values: Stored, entries: Stored, first: int) -> Stored:
    """Return `values` through a table: below its first value the first entry, above its last the last.

    Done here, not by pydicom, whose index wraps round where the entries have 8 bits and the values more, and
    which takes the entries of a big-endian palette for little-endian.
    """
    return np.asarray(entries[(values.astype(np.int64) - first).clip(0, len(entries) - 1)])
