"""Damaged images of every format: upright RGB or one documented error, in bounded time and memory.

Ten minutes of it: `make fuzz`, or FUZZ_SECONDS.
"""

import io
import os
import random
import struct
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from skjepa.data.images import MAX_PIXELS, ImageReadError, read_image

SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
SLOWEST = 30.0  # seconds an image, on a busy machine
LARGEST = 4 * 2**30  # bytes: copies of the largest picture that is read
FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")


def encoded() -> dict[str, bytes]:
    """One small picture in every format and in the ways in which formats differ."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    ways = {name: (picture, name, {}) for name in FORMATS} | {
        "progressive": (picture, "JPEG", {"progressive": True, "exif": exif}),
        "CMYK": (picture.convert("CMYK"), "JPEG", {}),
        "palette": (picture.quantize(16), "PNG", {"transparency": 3}),
        "16 bits": (Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG", {}),
        "alpha": (picture.convert("RGBA"), "WEBP", {"lossless": True}),
        "animation": (picture.quantize(16), "GIF", {"save_all": True, "append_images": [picture.quantize(8)]}),
        "LZW": (picture, "TIFF", {"compression": "tiff_lzw"}),
        "deflate": (picture, "TIFF", {"compression": "tiff_deflate"}),
        "float": (Image.fromarray(noise[..., 0].astype(np.float32)), "TIFF", {}),
    }
    files = {}
    for name, (image, kind, options) in ways.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


FILES = encoded()


def damaged(rng: random.Random) -> bytes:
    """A file with bits turned, numbers overwritten, its end cut off, or the head of one on the tail of another."""
    data = bytearray(FILES[rng.choice(sorted(FILES))])
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = rng.randrange(min(len(data), rng.choice([40, 200, len(data)])))  # headers more often
        how = rng.randrange(6)
        if how == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[place] = rng.randrange(256)
        elif how == 2:
            number = rng.choice([0, 1, 0xFF, 0x7FFF, 0xFFFF, 20_000, 0x7FFFFFFF, 0xFFFFFFFF])
            packed = struct.pack(rng.choice("<>") + "I", number)[: rng.choice([2, 4])]
            data[place : place + len(packed)] = packed
        elif how == 3:
            del data[max(1, place) :]
        elif how == 4:
            data[place:] = FILES[rng.choice(sorted(FILES))][rng.randrange(200) :]
        else:
            data[place:place] = data[rng.randrange(len(data)) :][: rng.randrange(1, 40)]
    return bytes(data)


def outcome(path: Path, data: bytes) -> str:
    """What `read_image` makes of it; a test fails where it makes anything else."""
    path.write_bytes(data)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of metadata
        try:
            image = read_image(path)
        except ImageReadError as error:
            result, words = "refused", str(error)
        else:
            assert image.mode == "RGB"
            assert 0 < image.width * image.height <= MAX_PIXELS
            assert np.asarray(image).shape == (image.height, image.width, 3)
            result, words = "read", f"{path}: "
    assert words.startswith(f"{path}: ")
    assert time.process_time() - started < SLOWEST
    return result


@given(st.randoms(use_true_random=False))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_image_is_read_or_refused(tmp_path, rng):
    outcome(tmp_path / "damaged.jpg", damaged(rng))


def test_what_is_damaged_is_whole_before(tmp_path):
    results = {name: outcome(tmp_path / "whole.jpg", data) for name, data in FILES.items()}
    assert results == dict.fromkeys(FILES, "read") | {"float": "refused"}


@pytest.mark.slow
def test_fuzz_of_the_loader(tmp_path):
    seed = int(os.environ.get("FUZZ_SEED", "0"))
    rng, counts, process = random.Random(seed), Counter(), psutil.Process()
    end, highest = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        data = damaged(rng)
        (tmp_path / "last.bin").write_bytes(data)  # of a crash this is left
        counts[outcome(tmp_path / "damaged.jpg", data)] += 1
        highest = max(highest, process.memory_info().rss)
    counted = f"{counts.total()} damaged images in {SECONDS:.0f} s, seed {seed}: {dict(counts)}"
    print(f"\n{counted}; at most {highest / 2**20:.0f} MiB")
    assert counts["read"]
    assert counts["refused"]
    assert highest < LARGEST
