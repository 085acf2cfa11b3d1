"""A folder of bad files: each ends as a scored row, with the score of what it shows, or as a row with a reason."""

import os
import signal
import struct
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracles import conv_net, random_images
from PIL import Image
from torch import nn

import skjepa.cli.app
import skjepa.extraction.processes.worker
from skjepa import JEPAScoreDetector, extract, jepa_score, load_encoder
from skjepa._utils.hardware import DeviceError, is_device_failure, is_out_of_memory
from skjepa.data.images import MAX_PIXELS, ImageReadError, read_image
from skjepa.data.sources import as_source
from skjepa.encoders.probe import EncoderError

# Sixteen colours, so that a palette, too, holds them all; `GREY` as 16 bits have it.
COLOURS = np.random.default_rng(1).integers(0, 256, (16, 3), dtype=np.uint8)
PLAIN = Image.fromarray(COLOURS[np.random.default_rng(2).integers(0, 16, (36, 44))])
GREY = PLAIN.convert("L")
LONG_NAME = "n" * 250 + ".png"


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG header of any size, with no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def sideways() -> tuple[Image.Image, Image.Exif]:
    """The picture lying on its side, and the note that says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return PLAIN.transpose(Image.Transpose.ROTATE_90), exif


def fill(root: Path) -> None:
    """All files of `SHOWN` and `REFUSED`."""
    wide = np.asarray(GREY).astype(np.uint16) * 257
    lying, exif = sideways()
    palette = PLAIN.quantize(16)
    PLAIN.save(root / "plain.png")
    GREY.save(root / "grey.png")
    PLAIN.convert("CMYK").save(root / "cmyk.tif")
    PLAIN.convert("RGBA").save(root / "alpha.webp", lossless=True)
    Image.fromarray(wide).save(root / "bits16.png")
    palette.save(root / "palette.png")
    palette.save(root / "animated.gif", save_all=True, append_images=[GREY.quantize(8)])
    lying.save(root / "turned.png", exif=exif)
    lying.save(root / "turned.webp", exif=exif, lossless=True)
    PLAIN.save(root / "Ünïcødé 日本.png")
    PLAIN.save(os.fsencode(root) + b"/latin-\xe9.png")
    PLAIN.save(root / LONG_NAME)
    PLAIN.save(root / "[red]markup\n.png")
    PLAIN.resize((1, 1)).save(root / "one.png")
    PLAIN.save(root / "whole.jpg")
    (root / "folder.jpg").mkdir()
    PLAIN.save(root / "folder.jpg" / "inside.png")

    (root / "cut.jpg").write_bytes((root / "whole.jpg").read_bytes()[:-300])
    (root / "cut.png").write_bytes((root / "plain.png").read_bytes()[:-300])
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("these are words")
    (root / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    Image.fromarray(np.asarray(GREY).astype(np.float32) * 40).save(root / "hdr.tiff")
    (root / "bomb.png").write_bytes(png_that_claims(60_000, 60_000))
    (root / "beyond.png").write_bytes(png_that_claims(MAX_PIXELS // 1000 + 1, 1000))
    (root / "hollow.png").write_bytes(png_that_claims(300, 300))
    Image.new("L", (5000, 2)).save(root / "strip.png")
    (root / "loop.png").symlink_to(root / "pool.png")
    (root / "pool.png").symlink_to(root / "loop.png")
    (root / "gone.png").symlink_to(root / "nowhere")
    (root / "around").symlink_to(root)  # not followed
    os.mkfifo(root / "pipe.jpg")
    (root / "endless.jpg").symlink_to("/dev/zero")


# What each file shows: the score is that of this one.
SHOWN = {
    "plain.png": "plain.png",
    "grey.png": "grey.png",
    "cmyk.tif": "plain.png",
    "alpha.webp": "plain.png",
    "bits16.png": "grey.png",
    "palette.png": "plain.png",
    "animated.gif": "plain.png",
    "turned.png": "plain.png",
    "turned.webp": "plain.png",
    "Ünïcødé 日本.png": "plain.png",
    "latin-\\udce9.png": "plain.png",
    LONG_NAME: "plain.png",
    "[red]markup\n.png": "plain.png",
    "folder.jpg/inside.png": "plain.png",
    "one.png": None,  # of its own
    "whole.jpg": None,
}
REFUSED = {
    "cut.jpg": "truncated",
    "cut.png": "truncated",
    "empty.jpg": "unknown format",
    "text.jpg": "unknown format",
    "program.jpg": "unknown format",
    "hdr.tiff": "floating-point pixels have no known range",
    "bomb.png": "more than 178,956,970 pixels",
    "beyond.png": "more than 178,956,970 pixels",
    "hollow.png": "cannot be read as an image",
    "strip.png": "more than 200 to 1 would fill the memory",
    "loop.png": "symbolic links",
    "pool.png": "symbolic links",
    "gone.png": "no such file",
    "pipe.jpg": "a pipe, a socket or a device",
    "endless.jpg": "a pipe, a socket or a device",
}


@pytest.fixture(autouse=True)
def in_time():
    """A pipe that is waited for would never end."""

    def ring(*_):
        raise TimeoutError("waits for ever")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    fill(root)
    return root


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(conv_net(), image_size=32)


@contextmanager
def skipping():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    assert all("skipped" in str(warning.message) for warning in caught), [str(w.message) for w in caught]


def test_each_file_is_scored_as_what_it_shows_or_has_its_reason(corpus, encoder, tmp_path):
    with skipping() as caught:
        found = extract(encoder, corpus, on_error="skip", store=tmp_path / "store")
    assert sorted(found.ids) == sorted(SHOWN)
    reasons = {name: reason for _, name, reason in found.meta["skipped"]}
    assert len(caught) == len(reasons)
    assert reasons.keys() == REFUSED.keys()
    for name, words in REFUSED.items():
        assert words in reasons[name]
        assert reasons[name].startswith(f"{corpus / name}: ")
    scores = dict(zip(found.ids.tolist(), jepa_score(encoder, found), strict=True))
    assert np.isfinite(list(scores.values())).all()
    assert scores["plain.png"] != scores["grey.png"]
    for name, shown in SHOWN.items():
        if shown is not None:
            np.testing.assert_allclose(scores[name], scores[shown], rtol=1e-5, err_msg=name)
    table = pq.read_table(tmp_path / "store" / "samples").to_pydict()
    noted = dict(zip(table["id"], zip(table["status"], table["error"], strict=True), strict=True))
    assert noted == dict.fromkeys(SHOWN, ("ok", None)) | {k: ("unreadable", reasons[k]) for k in REFUSED}


@pytest.mark.parametrize("name", REFUSED)
def test_each_bad_file_alone_is_an_error_that_names_it(corpus, encoder, name):
    with pytest.raises(ImageReadError, match=REFUSED[name]) as caught:
        extract(encoder, [corpus / name])
    assert str(caught.value).startswith(f"{corpus / name}: ")


def test_the_detector_gives_them_no_score_and_flags_them(corpus, encoder):
    detector = JEPAScoreDetector(encoder, on_error="skip").fit(random_images(20))
    names = [*SHOWN, *REFUSED]
    ids = as_source(corpus).ids.tolist()
    with skipping():
        scores = detector.score_samples(corpus)
    with skipping():
        labels = detector.predict(corpus)
    is_bad = np.array([name in REFUSED for name in ids])
    assert sorted(ids) == sorted(names)
    np.testing.assert_array_equal(np.isnan(scores), is_bad)
    assert (labels[is_bad] == -1).all()
    with pytest.raises(ImageReadError, match=r"cannot be read|more than|no such file"):
        detector.set_params(on_error="raise").score_samples(corpus)


def test_bytes_that_are_no_text_are_escaped_in_reasons_too(tmp_path, encoder):
    with pytest.raises(ImageReadError) as caught:
        extract(encoder, [os.fsdecode(os.fsencode(tmp_path) + b"/gone-\xe9.png")])
    assert str(caught.value).encode().endswith(rb"gone-\udce9.png: no such file")


@pytest.mark.parametrize("path", ["a\0b.png", "n" * 300 + ".png", ""])
def test_paths_that_no_file_has(path, encoder, tmp_path):
    with skipping():
        found = extract(encoder, [np.str_(path), str(saved(tmp_path))], on_error="skip", store=tmp_path / "store")
    assert found.ids.tolist() == [str(tmp_path / "good.png")]


def saved(folder: Path) -> Path:
    PLAIN.save(folder / "good.png")
    return folder / "good.png"


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    path = saved(tmp_path).rename(tmp_path / "locked.png")
    path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)  # who may read everything sees no such error
    try:
        with pytest.raises(ImageReadError, match=r"locked\.png: .*Permission denied"):
            read_image("locked.png")
    finally:
        if is_root:
            os.seteuid(0)


def test_tensors_that_are_not_numbers(encoder):
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return torch.full((3, 32, 32), torch.nan if i == 1 else 0.5)

    with skipping():
        found = extract(encoder, Data(), on_error="skip")
    assert found.meta["skipped"] == [[1, "1", "dataset item 1: NaN or infinite pixels"]]
    with pytest.raises(ImageReadError, match="dataset item 1: NaN"):
        extract(encoder, Data())
    with pytest.raises(ValueError, match="image 1: NaN"):
        extract(encoder, torch.stack([Data()[i] for i in range(3)]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(20_000, 600), (11_000, 9_000)], ids=["panorama", "99 megapixels"])
def test_large_photographs_are_scored_without_a_warning(tmp_path, encoder, size):
    PLAIN.resize(size, Image.Resampling.NEAREST).save(tmp_path / "large.ppm")
    assert np.isfinite(jepa_score(encoder, tmp_path)).all()


@pytest.mark.slow
def test_the_command_counts_them_and_says_so_by_its_exit_code(corpus, tmp_path, capsys):
    (tmp_path / "normal").mkdir()
    for i, image in enumerate(random_images(20)):
        Image.fromarray(image).save(tmp_path / "normal" / f"{i}.png")
    out = tmp_path / "scores.parquet"
    arguments = [
        "score",
        "--fit",
        tmp_path / "normal",
        corpus,
        "--out",
        out,
        "--no-picture",
        "-q",
        "--contamination",
        0.1,
    ]
    assert command(*arguments, "--on-error", "raise") == 2
    assert not out.exists()
    assert f"error: {corpus}" in capsys.readouterr().err
    assert command(*arguments) == 3
    rows = pq.read_table(out).to_pydict()
    assert len(rows["id"]) == len(SHOWN) + len(REFUSED)
    reasons = {name: error for name, error in zip(rows["id"], rows["error"], strict=True) if error}
    assert reasons.keys() == REFUSED.keys()
    assert [score is None for score in rows["score"]] == [error is not None for error in rows["error"]]
    assert f"({len(REFUSED)} unreadable)" in " ".join(capsys.readouterr().out.split())


def command(*arguments) -> int:
    with pytest.raises(SystemExit) as exit:
        skjepa.cli.app.main([str(argument) for argument in arguments])
    return exit.value.code


class Root(nn.Module):
    """Its Jacobian is infinite at whole numbers."""

    def forward(self, x):
        return (x - x.detach().round() + 0).abs().sqrt()


def test_a_sample_that_is_not_finite_is_a_row_with_its_reason(tmp_path):
    encoder, X, ids = load_encoder(Root()), [[0.5, 0.25], [0.0, 1.0], [0.25, 0.5]], ["a", "b", "c"]
    reason = "the encoder's Jacobian is not finite at sample b"
    with pytest.raises(EncoderError, match=reason):
        extract(encoder, X, ids=ids, store=tmp_path / "store")
    kept = pq.read_table(tmp_path / "store" / "samples").to_pydict()
    assert sorted(kept["id"]) == ["a", "c"]  # of the same batch, and not lost
    with skipping() as caught:
        found = extract(encoder, X, ids=ids, on_error="skip", store=tmp_path / "store")
    assert found.ids.tolist() == ["a", "c"]
    assert found.meta["skipped"] == [[1, "b", reason]]
    assert len(caught) == 1
    with skipping():
        np.testing.assert_array_equal(np.isnan(jepa_score(encoder, X, on_error="skip")), [False, True, False])
    # Where no Jacobian is asked for, none is in the way.
    assert extract(encoder, X, ids=ids, method="forward").ids.tolist() == ids


class Logarithm(nn.Module):
    def forward(self, x):
        return x.log()


class Finite(nn.Module):
    def forward(self, x):
        return x.nan_to_num()


def test_a_hidden_layer_that_is_not_finite_is_told_where_it_is_read():
    net = nn.Sequential(Logarithm(), Finite(), nn.Linear(2, 2))
    X, ids = [[0.5, 0.25], [-1.0, 1.0], [0.25, 0.5]], ["a", "b", "c"]
    options = {"ids": ids, "method": "forward"}
    with pytest.raises(EncoderError, match="a hidden layer of the encoder is not finite at sample b"):
        extract(load_encoder(net), X, layers=["0"], **options)
    with skipping() as caught:
        found = extract(load_encoder(net), X, layers=["0"], on_error="skip", **options)
    assert (found.ids.tolist(), len(caught)) == (["a", "c"], 1)
    for layers in ("auto", ["1"], None):
        assert extract(load_encoder(net), X, layers=layers, **options).ids.tolist() == ids


class Failing(nn.Module):
    """Linear; raises at samples whose first number is negative."""

    def __init__(self, error):
        super().__init__()
        self.linear, self.error = nn.Linear(4, 3), error

    def forward(self, x):
        if bool((x[:, 0] < -100).any()):
            raise self.error
        return self.linear(x)


LOST = RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")


def test_a_failed_device_names_its_batch_and_what_was_finished_is_kept(tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(6, 4))
    X[4, 0] = -1000
    ids = list("abcdef")
    encoder = load_encoder(Failing(LOST))
    with pytest.raises(DeviceError, match=r"a batch of 1: e: CUDA error: an illegal .*run again") as caught:
        extract(encoder, X, ids=ids, memory_budget=1, store=tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert sorted(pq.read_table(tmp_path / "store" / "samples").to_pydict()["id"]) == list("abcd")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), LOST])
def test_other_names_of_the_same_failures(error):
    assert is_out_of_memory(error) == (error is not LOST)
    assert is_device_failure(error) == (error is LOST)
    assert not is_device_failure(ValueError(str(error)))
    assert is_device_failure(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert not is_device_failure(RuntimeError("shape mismatch"))


def test_one_sample_that_does_not_fit_is_named():
    X = np.zeros((3, 4))
    X[1, 0] = -1000
    error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(MemoryError, match=r"does not fit into memory.*in a batch of 3: a, b, c"):
        extract(load_encoder(Failing(error)), X, ids=list("abc"))


def test_a_worker_that_lost_its_device_ends(monkeypatch, capsys):
    class Gone(BaseException):
        pass

    def leave(status):
        raise Gone(status)

    def batches():
        yield [0], ()
        raise DeviceError("the device failed")

    monkeypatch.setattr(skjepa.extraction.processes.worker.os, "_exit", leave)
    with pytest.raises(Gone):
        list(skjepa.extraction.processes.worker._or_end(batches()))
    assert "the device failed" in capsys.readouterr().err
