"""Pictures in the formats of microscopes: grey levels, the pixel size that the file states, and the data bar below."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from companion.errors import CompanionError
from companion.provenance import atomic

PERCENTILES = (0.5, 99.5)  # grey levels of a micrograph of more than 8 bits that become 0 and 255
CHANNEL_DIFFERENCE = 3  # of 255, between the channels of a grey picture that was stored in colour (JPEG)
COLOURED_SHARE = 0.01  # of its pixels, a scale bar or a mark in a grey picture
SUFFIXES = (".png", ".tif", ".tiff")  # of the one format
# Readers of RosettaSciIO.
MICROSCOPES = {".dm3": "digitalmicrograph", ".dm4": "digitalmicrograph", ".mrc": "mrc", ".ser": "tia", ".emd": "emd",
               ".hspy": "hspy"}  # fmt: skip
IMAGE_SUFFIXES = (*SUFFIXES, ".jpg", ".jpeg", ".bmp", *MICROSCOPES)
MOST_PIXELS = 2**30
MOST_NM = 1e6  # nm per px; more is a diffraction pattern whose unit got lost
NM = {"pm": 1e-3, "å": 0.1, "angstrom": 0.1, "nm": 1.0, "nanometer": 1.0, "µm": 1e3, "um": 1e3, "micron": 1e3,
      "\\u00b5m": 1e3, "mm": 1e6, "cm": 1e7, "m": 1e9}  # fmt: skip
Grey = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]

Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # montages of 200 megapixels are usual; Pillow takes them for an attack
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would say of a damaged file, the error says


class Picture(NamedTuple):
    """A micrograph file as read."""

    pixels: Grey  # [H, W]
    pixel_size_nm: float | None  # nm per px, where the file states it
    notes: tuple[str, ...] = ()  # what deserves to be known of it
    cropped: int = 0  # rows left out at the bottom, px


def read_micrograph(path: Path, crop_bottom: int | str = 0) -> Picture:
    """A grey picture: 8 or 16-bit as it is, others (signed, float, 32-bit) as float32.

    Parameters
    ----------
    path : TIFF, PNG, JPEG, BMP, or with RosettaSciIO installed dm3, dm4, MRC, SER, EMD, hspy; a colour file counts if
        its channels are equal but for `COLOURED_SHARE` of the pixels; one whose tags say that 0 is white is inverted
    crop_bottom : rows to leave out at the bottom, px; "auto": those of a `data_bar`
    """
    pixels, colours, size = _decoded(path)
    pixels, notes = pixels if colours is None else colours[pixels], ()
    if pixels.ndim == 3:
        tolerance = CHANNEL_DIFFERENCE * (257 if pixels.dtype == np.uint16 else 1)
        share = float((pixels.max(axis=2) - pixels.min(axis=2) > tolerance).mean())
        if share > COLOURED_SHARE:
            raise CompanionError(f"{path} is a colour picture; micrographs and label maps are grey")
        pixels, notes = pixels[..., 1], (f"{share:.2%} of its pixels are coloured (a scale bar?)",) * (share > 0)
    rows = data_bar(pixels) if crop_bottom == "auto" or not crop_bottom else int(crop_bottom)
    if rows and not crop_bottom:
        notes, rows = (*notes, f"its lowest {rows} rows look like a data bar: --crop-bottom auto leaves them out"), 0
    if rows >= len(pixels):
        raise CompanionError(f"{path} has {len(pixels)} rows: {rows} cannot be cropped")
    return Picture(pixels[: len(pixels) - rows], size, notes, rows)


def read_grey(path: Path) -> Grey:
    """Grey levels [H, W] of a micrograph file, see `read_micrograph`."""
    return read_micrograph(path).pixels


def read_label_map(path: Path) -> Grey:
    """Values [H, W] of a label map; of an indexed picture the indices, whatever their colours."""
    pixels, _, _ = _decoded(path)
    return pixels if pixels.ndim == 2 else read_grey(path)


def data_bar(pixels: Grey) -> int:
    """Height of a microscope's data bar at the bottom, px, or 0: rows mostly of one level below a straight edge."""
    lower = pixels[-(len(pixels) // 4) :]
    values, counts = np.unique(pixels[-max(len(pixels) // 50, 4) :], return_counts=True)
    plain = (lower == values[counts.argmax()]).mean(axis=1)
    plain[np.ptp(lower, axis=1) == 0] = 1  # lines that part the bar
    top = int(np.flatnonzero([1, *(plain < 0.4)])[-1])
    rows, above = len(lower) - top, plain[max(top - 8, 0) : top]
    return rows if rows >= max(8, len(pixels) / 50) and len(above) and above.mean() < 0.2 else 0


def to_uint8(pixels: Grey) -> NDArray[np.uint8]:
    """8-bit images as they are; others scaled linearly, 0.5th percentile to 0 and 99.5th to 255."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = np.percentile(pixels, PERCENTILES)
    scale = 255.0 / (max(high - low, 1.0) if pixels.dtype.kind == "u" else (high - low or 1.0))
    scaled = np.empty(pixels.shape, np.uint8)
    for at in range(0, len(pixels), 256):  # a montage in float64 would not fit into memory
        block = np.s_[at : at + 256]
        scaled[block] = np.clip(np.rint((pixels[block].astype(np.float64) - low) * scale), 0, 255)
    return scaled


def write_grey(path: Path, pixels: Grey) -> None:
    """Write a grey image [H, W], atomically: 8 and 16-bit as PNG, float32 as TIFF, as the suffix of the path says."""
    with atomic(path) as temporary:
        tifffile.imwrite(temporary, pixels) if path.suffix == ".tif" else Image.fromarray(pixels).save(temporary)


def _decoded(path: Path) -> tuple[NDArray, NDArray[np.uint8] | None, float | None]:
    """Values [H, W] or colours [H, W, 3], the palette [256, 3] of an indexed picture, and nm per px."""
    suffix = path.suffix.lower()
    read = _microscope if suffix in MICROSCOPES else _tiff if suffix in (".tif", ".tiff") else _pillow
    try:
        pixels, colours, size = read(path)
    except CompanionError:
        raise
    except Exception as error:  # decoders fail in as many ways as files can be damaged
        way = f"; if Fiji opens this {suffix} file, save it as TIFF there" if read is _microscope else ""
        raise CompanionError(f"{path} is not a readable image: {str(error) or type(error).__name__}{way}") from None
    size = size if size and 0 < size < MOST_NM else None
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):  # the last is transparency
        pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    if not pixels.size or (pixels.ndim != 2 and pixels.shape[2:] != (3,)) or pixels.dtype.kind not in "iuf":
        raise CompanionError(f"{path} holds {pixels.dtype} values of shape {pixels.shape}: no single grey picture")
    if pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 65535:
        pixels = pixels.astype(np.uint8 if pixels.dtype == np.uint8 else np.uint16, copy=False)
    elif not np.isfinite(pixels := pixels.astype(np.float32)).all():
        raise CompanionError(f"{path} holds values that are not finite")
    return pixels, colours, size


def _one(path: Path, frames: int, width: int, height: int) -> None:
    if frames > 1:
        raise CompanionError(f"{path} is a stack of {frames} pictures; save the one that counts as a file")
    if width * height > MOST_PIXELS:
        raise CompanionError(f"{path} would be {width} x {height} px, more than can be read: cut it into pieces")


def _pillow(path: Path) -> tuple[NDArray, NDArray[np.uint8] | None, None]:
    with Image.open(path) as opened:
        _one(path, getattr(opened, "n_frames", 1), *opened.size)
        if opened.mode == "P":
            palette = np.reshape(opened.getpalette("RGB"), (-1, 3)).astype(np.uint8)
            return np.asarray(opened), np.pad(palette, ((0, 256 - len(palette)), (0, 0))), None
        known = opened.mode in ("1", "L", "F", "RGB", "RGBA", "LA") or opened.mode[0] == "I"
        return np.asarray(opened if known else opened.convert("RGB")), None, None


def _tiff(path: Path) -> tuple[NDArray, NDArray[np.uint8] | None, float | None]:
    with tifffile.TiffFile(path) as tiff:
        pages = [page for page in tiff.pages if not page.subfiletype & 5]  # 1: a smaller copy, 4: a mask
        page, held = pages[0], (tiff.imagej_metadata or {}).get("images", 1)  # ImageJ keeps large stacks in one page
        _one(path, max(len(pages), held, page.imagedepth), page.imagewidth, page.imagelength)
        if max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))) > path.stat().st_size:
            raise CompanionError(f"{path} is not a readable image: it ends before its last row")
        own = page.compression in (1, 8, 32773, 32946) and page.photometric not in (5, 6)
        pixels = page.asarray() if own else _pillow(path)[0]
        if own and page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        if page.photometric == 0 and (own or pixels.dtype != np.uint8):  # of 8 bits Pillow inverts itself
            pixels = ~pixels if pixels.dtype == bool else (
                -pixels if pixels.dtype.kind != "u" else (1 << page.bitspersample) - 1 - pixels)  # fmt: skip
        colours = np.asarray(page.colormap >> 8, np.uint8).T if page.photometric == 3 else None
        return pixels, colours, _tiff_scale(tiff, page)


def _tiff_scale(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> float | None:
    """nm per px by the tags of FEI, TVIPS, Gatan, JEOL, ImageJ, OME; dots per inch say nothing about a micrograph."""
    tags: dict[int, Any] = {tag.code: tag.value for tag in page.tags.values()}
    try:
        if tiff.fei_metadata:
            beam = tiff.fei_metadata.get("Scan") or tiff.fei_metadata["EScan"]
            return float(beam["PixelWidth"]) * 1e9
        if tiff.tvips_metadata:
            return float(tiff.tvips_metadata["PixelSizeX"])
        if 65009 in tags:
            return float(tags[65009]) * _nm(tags[65003])
        dots, units = tags.get(282, (0, 0))  # XResolution
        if tags.get(271) == "JEOL Ltd.":  # length on the camera, divided by the magnification
            report = ElementTree.fromstring(tags[270].strip("\r\n\t\x01\x00 "))
            said = {name: report.findtext(f".//{name}") for name in ("EosMode", "ModeString", "SelectorValue")}
            unit = NM["cm"] * (2.54 if tags[296] == 2 else 1)
            real_space = (said["EosMode"], said["ModeString"]) == ("eosTEM", "MAG")
            return units / dots * unit / float(said["SelectorValue"]) if real_space else None
        if tiff.imagej_metadata:
            return units / dots * _nm(tiff.imagej_metadata["unit"])
        if tiff.ome_metadata:
            pixels = next(e for e in ElementTree.fromstring(tiff.ome_metadata).iter() if e.tag.endswith("}Pixels"))
            return float(pixels.attrib["PhysicalSizeX"]) * _nm(pixels.get("PhysicalSizeXUnit", "µm"))
    except (ArithmeticError, AttributeError, LookupError, StopIteration, SyntaxError, TypeError, ValueError):
        return None
    return None


def _nm(unit: Any) -> float:
    text = unit.decode("latin-1") if isinstance(unit, bytes) else str(unit)
    return NM.get(text.strip("\x00 ").replace("μ", "µ").lower(), np.nan)  # two signs look like a micro


def _microscope(path: Path) -> tuple[NDArray, None, float | None]:
    try:
        reader = import_module(f"rsciio.{MICROSCOPES[path.suffix.lower()]}")
    except ImportError:
        raise CompanionError(
            f"{path}: {path.suffix} files are read by RosettaSciIO: pip install 'companion[microscopy]', or save it as "
            "TIFF (Fiji, Digital Micrograph)"
        ) from None
    signals = reader.file_reader(str(path))
    # Transforms, plots and spectra lie beside the picture (Velox, Digital Micrograph); axes of these differ in kind.
    grey = [s for s in signals if (data := np.squeeze(s["data"])).ndim == 2 and data.dtype.kind in "biuf"
            and len({(a.get("navigate"), a.get("units")) for a in s["axes"] if a["size"] > 1}) < 2]  # fmt: skip
    if len(grey) != 1:
        titles = [s["metadata"].get("General", {}).get("title") or "data" for s in signals]
        held = ", ".join(f"{title} {np.shape(s['data'])}" for title, s in zip(titles, signals, strict=True))
        raise CompanionError(f"{path} holds {held:.200}: save the one grey picture that counts as TIFF")
    axis = grey[0]["axes"][-1]
    return np.squeeze(grey[0]["data"]), None, float(axis["scale"]) * _nm(axis.get("units"))
