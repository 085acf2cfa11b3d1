"""Whatever is called data: the same pictures whichever way they come, and an error that names what is wrong."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from skjepa.data.folders import IMAGE_SUFFIXES
from skjepa.data.images import ImageReadError, read_image, to_rgb
from skjepa.data.sources import Source, as_source, folder_source


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)


@pytest.fixture
def folder(pixels, tmp_path) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"{i}.png")
    return root


class Pictures(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def uint8(sample) -> np.ndarray:
    """Any loaded sample as (H, W, 3) in 0 ... 255."""
    if isinstance(sample, torch.Tensor):
        sample = sample.permute(1, 2, 0).numpy()
    array = np.asarray(sample)
    return array if array.dtype == np.uint8 else np.rint(array * 255).astype(np.uint8)


KINDS = {
    "array": lambda pixels, folder: pixels,
    "float32 array": lambda pixels, folder: (pixels / 255).astype(np.float32),
    "float64 array": lambda pixels, folder: pixels / 255,
    "read-only array": lambda pixels, folder: np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape),
    "list of arrays": lambda pixels, folder: list(pixels),
    "tuple of arrays": lambda pixels, folder: tuple(pixels / 255),
    "PIL images": lambda pixels, folder: [Image.fromarray(image) for image in pixels],
    "opened files": lambda pixels, folder: [Image.open(path) for path in sorted(folder.iterdir())],
    "object array of PIL images": lambda pixels, folder: object_array([Image.fromarray(image) for image in pixels]),
    "paths": lambda pixels, folder: sorted(folder.iterdir()),
    "path strings": lambda pixels, folder: [str(path) for path in sorted(folder.iterdir())],
    "string array": lambda pixels, folder: np.array([str(path) for path in sorted(folder.iterdir())]),
    "column of strings": lambda pixels, folder: np.array([[str(path)] for path in sorted(folder.iterdir())]),
    "column of paths": lambda pixels, folder: object_array(sorted(folder.iterdir()))[:, None],
    "folder": lambda pixels, folder: folder,
    "folder string": lambda pixels, folder: str(folder),
    "tensor": lambda pixels, folder: channels_first(pixels),
    "tensor with a graph": lambda pixels, folder: channels_first(pixels).requires_grad_(True),
    "list of tensors": lambda pixels, folder: list(channels_first(pixels)),
    "dataset": lambda pixels, folder: Pictures(channels_first(pixels)),
    "dataset with labels": lambda pixels, folder: Pictures([(image, 0) for image in channels_first(pixels)]),
    "tensor dataset": lambda pixels, folder: TensorDataset(channels_first(pixels), torch.arange(len(pixels))),
    "dataset of PIL images": lambda pixels, folder: Pictures([(Image.fromarray(image), "cat") for image in pixels]),
}


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


def object_array(items) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_same_pixels_in_the_same_order(self, pixels, folder, kind):
        source = as_source(KINDS[kind](pixels, folder))
        assert len(source) == len(pixels)
        assert not source.is_vector
        assert source.ids.dtype.kind == "U"
        assert len(set(source.ids)) == len(pixels)
        for i in (4, 0, 2, 3, 1):
            np.testing.assert_array_equal(uint8(source.load(i)), pixels[i])

    @pytest.mark.parametrize(
        "X",
        [
            np.arange(12.0).reshape(4, 3),
            np.arange(12).reshape(4, 3),
            np.arange(12.0).reshape(4, 3).astype(object),
            np.arange(12.0).reshape(4, 3).astype(">f4"),
            [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]],
            list(np.arange(12.0).reshape(4, 3)),
            torch.arange(12.0).reshape(4, 3),
            torch.arange(12).reshape(4, 3).bfloat16(),
            list(torch.arange(12.0).reshape(4, 3)),
        ],
    )
    def test_vectors(self, X):
        source = as_source(X)
        assert source.is_vector
        rows = np.stack([source.load(i) for i in range(len(source))])
        assert rows.dtype == np.float64
        np.testing.assert_array_equal(rows, np.arange(12.0).reshape(4, 3))
        assert np.array_equal(source.ids, as_source(np.arange(12.0).reshape(4, 3)).ids)

    def test_data_frame(self, folder):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"a": [1, 2], "b": [3.5, 4]})
        np.testing.assert_array_equal(as_source(frame).load(1), [2, 4])
        paths = pandas.Series([str(path) for path in sorted(folder.iterdir())])
        for column in (paths, paths.to_frame()):
            assert as_source(column).load(0).size == (7, 9)

    def test_read_only_vectors_load_writable(self):
        X = np.zeros((2, 3))
        X.flags.writeable = False
        assert as_source(X).load(0).flags.writeable

    def test_a_source_is_taken_as_it_is(self, pixels):
        source = as_source(pixels)
        assert as_source(source) is source


class TestIds:
    def test_of_files_are_paths(self, folder):
        assert as_source(folder).ids.tolist() == [f"{i}.png" for i in range(5)]
        files = [str(path) for path in sorted(folder.iterdir())]
        assert as_source(files).ids.tolist() == files

    def test_of_nested_folders(self, tmp_path, pixels):
        for name in ("b/1.JPG", "a/deep/2.png", "a/10.jpeg", "c.webp", "a/9.jpeg"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0]).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("no picture")
        (tmp_path / "empty").mkdir()
        assert as_source(tmp_path).ids.tolist() == ["a/10.jpeg", "a/9.jpeg", "a/deep/2.png", "b/1.JPG", "c.webp"]

    def test_of_pixels_are_their_content(self, pixels):
        ids = as_source(pixels).ids
        assert np.array_equal(as_source(pixels[::-1]).ids, ids[::-1])
        assert np.array_equal(as_source([Image.fromarray(image) for image in pixels]).ids, ids)
        assert as_source(pixels[[0, 0]]).ids[0] == as_source(pixels[[0, 0]]).ids[1]
        assert len({as_source(pixels.astype(dtype) / 255).ids[0] for dtype in (np.float32, np.float64)}) == 2

    def test_palette_counts(self):
        """The same indices under another palette are another picture."""
        images = [Image.new("P", (4, 4)) for _ in range(2)]
        images[0].putpalette([255, 0, 0])
        images[1].putpalette([0, 255, 0])
        source = as_source(images)
        assert source.ids[0] != source.ids[1]
        assert source.load(0).getpixel((0, 0)) == (255, 0, 0)

    def test_of_datasets_are_positions(self, pixels):
        source = as_source(Pictures(channels_first(pixels)))
        assert source.ids.tolist() == ["0", "1", "2", "3", "4"]
        assert not source.stable_ids
        assert as_source(Pictures(channels_first(pixels)), ids=list("abcde")).stable_ids

    def test_given(self, pixels):
        assert as_source(pixels, ids=range(5)).ids.tolist() == ["0", "1", "2", "3", "4"]

    @pytest.mark.parametrize(
        ("ids", "message"),
        [("abcde", "one name per sample"), (["a"], "one name per sample"), (list("abcda"), "unique")],
    )
    def test_refused(self, pixels, ids, message):
        with pytest.raises(ValueError, match=message):
            as_source(pixels, ids=ids)

    @given(
        hnp.arrays(np.uint8, (4, 3, 3, 3), elements=st.integers(0, 3)),
        st.permutations(range(4)),
    )
    @settings(max_examples=30, deadline=None)
    def test_equal_exactly_where_the_pictures_are(self, images, order):
        ids = as_source(images[order]).ids
        for i in range(4):
            for j in range(4):
                assert (ids[i] == ids[j]) == np.array_equal(images[order[i]], images[order[j]])


class TestNames:
    @pytest.mark.parametrize("name", ["ÄÖ ß.png", "猫.png", "a b\n.png", "😀.PNG", "e\u0301.png"])
    def test_beyond_ascii(self, tmp_path, pixels, name):
        Image.fromarray(pixels[0]).save(tmp_path / name)
        source = as_source(tmp_path)
        assert source.ids.tolist() == [name]
        np.testing.assert_array_equal(uint8(source.load(0)), pixels[0])

    @pytest.mark.skipif(os.name == "nt", reason="file names are text there")
    def test_bytes_that_are_no_text(self, tmp_path, folder, pixels):
        """Such names exist on Unix; as ids they must fit into a file of results."""
        target = os.fsencode(tmp_path) + b"/caf\xe9.png"
        try:
            os.link(folder / "0.png", target)
        except OSError:
            pytest.skip("this file system takes text only")
        for source in (as_source([os.fsdecode(target)]), as_source(tmp_path)):
            assert source.ids[0].encode()
            np.testing.assert_array_equal(uint8(source.load(0)), pixels[0])

    def test_every_suffix_is_known_to_pillow(self):
        assert set(Image.registered_extensions()) >= IMAGE_SUFFIXES


class TestLinks:
    def test_loop_of_folders(self, folder):
        (folder / "again").symlink_to(folder, target_is_directory=True)
        assert len(as_source(folder)) == 5

    def test_linked_folder_as_the_root(self, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        assert len(as_source(tmp_path / "link")) == 5

    def test_linked_file(self, folder, pixels):
        (folder / "link.png").symlink_to(folder / "0.png")
        source = as_source(folder)
        np.testing.assert_array_equal(uint8(source.load(5)), pixels[0])

    def test_broken_link_is_named(self, folder):
        (folder / "gone.png").symlink_to(folder / "nowhere.png")
        source = as_source(folder)
        with pytest.raises(ImageReadError, match=r"gone\.png: no such file"):
            source.load(source.ids.tolist().index("gone.png"))


class TestConversion:
    """Grey, palette, transparent, CMYK, 16-bit and rotated files, all to upright 8-bit RGB."""

    @staticmethod
    def through_file(image: Image.Image, path: Path, **options) -> np.ndarray:
        image.save(path, **options)
        loaded = read_image(path)
        assert loaded.mode == "RGB"
        opened = as_source([Image.open(path)])
        np.testing.assert_array_equal(np.asarray(opened.load(0)), np.asarray(loaded))
        return np.asarray(loaded)

    def test_grey(self, tmp_path):
        grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
        loaded = self.through_file(Image.fromarray(grey), tmp_path / "x.png")
        np.testing.assert_array_equal(loaded, np.repeat(grey[..., None], 3, axis=2))

    def test_bilevel(self, tmp_path):
        loaded = self.through_file(Image.new("1", (2, 2), 1), tmp_path / "x.png")
        assert (loaded == 255).all()

    def test_grey_with_alpha(self, tmp_path):
        loaded = self.through_file(Image.new("LA", (2, 2), (90, 10)), tmp_path / "x.png")
        assert (loaded == 90).all()

    @pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
    def test_palette(self, tmp_path, transparency):
        """Transparent colours keep their colour; Pillow does not complain."""
        palette = Image.new("P", (3, 1))
        palette.putdata([0, 1, 2])
        palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        options = {} if transparency is None else {"transparency": transparency}
        loaded = self.through_file(palette, tmp_path / "x.png", **options)
        np.testing.assert_array_equal(loaded, [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])

    def test_transparency_is_dropped(self, tmp_path):
        loaded = self.through_file(Image.new("RGBA", (2, 2), (10, 20, 30, 0)), tmp_path / "x.png")
        np.testing.assert_array_equal(loaded[0, 0], [10, 20, 30])

    def test_cmyk(self, tmp_path):
        loaded = self.through_file(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "x.jpg", quality=100)
        assert np.abs(loaded.astype(int) - [255, 0, 0]).max() < 8

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bits(self, tmp_path, suffix):
        values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
        loaded = self.through_file(Image.fromarray(values), tmp_path / f"x.{suffix}")
        np.testing.assert_array_equal(loaded[0, :, 0], [0, 0, 1, 128, 255])

    def test_thirty_two_bits(self):
        """Nothing says how many of them are used: sixteen, unless the caller knows better."""
        image = Image.fromarray(np.array([[0, 51200]], dtype=np.int32))
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 200]
        dark = Image.fromarray(np.array([[0, 200]], dtype=np.int32))
        with pytest.warns(UserWarning, match="less than half of the range"):
            assert np.asarray(to_rgb(dark))[0, :, 0].tolist() == [0, 0]
        assert np.asarray(to_rgb(dark, (0, 255)))[0, :, 0].tolist() == [0, 200]

    def test_floating_point_files_are_refused(self, tmp_path):
        Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "x.tif")
        with pytest.raises(ImageReadError, match=r"x\.tif.*no known range"):
            read_image(tmp_path / "x.tif")

    def test_exif_orientation(self, tmp_path):
        image = Image.fromarray(np.kron(np.eye(2)[:1], np.ones((8, 8))).astype(np.uint8) * 255).convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter, clockwise
        loaded = self.through_file(image, tmp_path / "x.jpg", exif=exif, quality=100)
        assert loaded.shape == (16, 8, 3)
        assert loaded[:8].mean() > 240
        assert loaded[8:].mean() < 15

    def test_first_frame_of_an_animation(self, tmp_path):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.gif"))[0, 0], [255, 0, 0])


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG header of any size, with no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


class TestBrokenFiles:
    @pytest.fixture
    def whole(self, pixels, tmp_path):
        large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        large.save(tmp_path / "whole.jpg")
        large.save(tmp_path / "whole.png")
        return tmp_path

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("cut.jpg", lambda root: (root / "whole.jpg").read_bytes()[:-500]),
            ("cut.png", lambda root: (root / "whole.png").read_bytes()[:-500]),
            ("head.jpg", lambda root: (root / "whole.jpg").read_bytes()[:30]),
            ("text.jpg", lambda root: b"these are words"),
            ("empty.png", lambda root: b""),
            ("noise.webp", lambda root: bytes(range(256)) * 4),
            ("hollow.png", lambda root: png_that_claims(10, 10)),
            ("bomb.png", lambda root: png_that_claims(100_000, 100_000)),
        ],
    )
    def test_named(self, whole, name, content):
        path = whole / "broken" / name
        path.parent.mkdir()
        path.write_bytes(content(whole))
        for source in (as_source(path.parent), as_source([path]), as_source(np.array([[str(path)]]))):
            assert len(source) == 1
            with pytest.raises(ImageReadError, match=name):
                source.load(0)

    def test_missing(self, tmp_path):
        source = as_source([str(tmp_path / "gone.jpg")])
        with pytest.raises(ImageReadError, match=r"gone\.jpg: no such file"):
            source.load(0)

    def test_folder_named_like_a_picture(self, tmp_path):
        (tmp_path / "folder.jpg").mkdir()
        with pytest.raises(ImageReadError, match=r"folder\.jpg"):
            as_source([tmp_path / "folder.jpg"]).load(0)

    def test_opened_and_truncated(self, whole, pixels):
        """Found when it is loaded, not before, so that it can be skipped; the good ones load."""
        (whole / "cut.png").write_bytes((whole / "whole.png").read_bytes()[:-500])
        with Image.open(whole / "cut.png") as broken:
            source = as_source([Image.fromarray(pixels[0]), broken])
            np.testing.assert_array_equal(uint8(source.load(0)), pixels[0])
            with pytest.raises(ImageReadError, match=r"image 1 .*cut\.png"):
                source.load(1)

    def test_folder_that_may_not_be_listed_is_an_error(self, folder, monkeypatch):
        """`os.walk` would pass over what it may not list, and images would go missing in silence."""
        (folder / "closed").mkdir()
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(PermissionError, match="closed"):
            as_source(folder)


def images(value: float, dtype=np.float64) -> np.ndarray:
    X = np.full((3, 4, 4, 3), 0.5, dtype=dtype)
    X[1, 2, 3, 0] = value
    return X


BAD = [
    ("NaN pixels", lambda tmp: images(np.nan), ValueError, "image 1: NaN or infinite"),
    ("infinite pixels", lambda tmp: images(np.inf), ValueError, "image 1: NaN or infinite"),
    ("infinite half", lambda tmp: images(-np.inf, np.float16), ValueError, "image 1: NaN or infinite"),
    ("above one", lambda tmp: images(1.01), ValueError, r"image 1: .*\[0, 1\].* from 0\.5 to 1\.01"),
    ("below zero", lambda tmp: images(-0.01), ValueError, r"image 1: .*\[0, 1\].* from -0\.01 to 0\.5"),
    ("0 ... 255 floats", lambda tmp: images(200.0), ValueError, r"\[0, 1\]"),
    ("integers", lambda tmp: np.zeros((2, 4, 4, 3), dtype=int), TypeError, "uint8 or float.*int64"),
    ("grey array", lambda tmp: np.zeros((2, 4, 4, 1)), ValueError, r"3 channels, last.*\(2, 4, 4, 1\)"),
    ("RGBA array", lambda tmp: np.zeros((2, 4, 4, 4), np.uint8), ValueError, "3 channels"),
    ("channels first", lambda tmp: np.zeros((2, 3, 4, 4)), ValueError, "3 channels"),
    ("one RGBA image", lambda tmp: np.zeros((4, 4, 4)), ValueError, r"\(N, H, W, 3\).*\(4, 4, 4\)"),
    ("grey images", lambda tmp: np.zeros((5, 4, 4)), ValueError, r"\(N, H, W, 3\).*\(5, 4, 4\)"),
    ("list of grey", lambda tmp: [np.zeros((4, 4))] * 2, ValueError, r"\(N, H, W, 3\).*\(2, 4, 4\)"),
    ("one vector", lambda tmp: np.zeros(4), ValueError, r"\(n, d\).*\(4,\)"),
    ("scalar", lambda tmp: 3.0, TypeError, "got float"),
    ("None", lambda tmp: None, TypeError, "got NoneType"),
    ("no pixels", lambda tmp: np.zeros((2, 0, 4, 3)), ValueError, "images without pixels"),
    ("empty array", lambda tmp: np.zeros((0, 4, 4, 3)), ValueError, "no samples"),
    ("empty uint8 array", lambda tmp: np.zeros((0, 4, 4, 3), np.uint8), ValueError, "no samples"),
    ("empty table", lambda tmp: np.zeros((0, 3)), ValueError, "no samples"),
    ("empty list", lambda tmp: [], ValueError, "empty list"),
    ("empty dataset", lambda tmp: Pictures([]), ValueError, "no samples"),
    ("empty tensor", lambda tmp: torch.zeros(0, 3, 4, 4), ValueError, "no samples"),
    ("empty folder", lambda tmp: tmp, ValueError, "no image files below .*jpg, "),
    ("missing folder", lambda tmp: tmp / "gone", FileNotFoundError, "no folder .*gone"),
    ("a file", lambda tmp: Path(__file__), NotADirectoryError, "is a file: give a folder"),
    ("ragged arrays", lambda tmp: [np.zeros((4, 4, 3)), np.zeros((5, 4, 3))], ValueError, r"ragged.*\(4, 4, 3\)"),
    ("ragged tensors", lambda tmp: [torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)], ValueError, "ragged"),
    ("ragged lists", lambda tmp: [[1, 2], [3]], ValueError, "ragged"),
    ("mixed kinds", lambda tmp: ["a.png", Image.new("RGB", (2, 2))], TypeError, "mixes PIL images and paths"),
    ("paths and arrays", lambda tmp: [Path("a.png"), np.zeros((2, 2, 3))], TypeError, "mixes arrays and paths"),
    ("words in a table", lambda tmp: [["a", "b"], ["c", "d"]], TypeError, "give images, paths or vectors"),
    ("objects", lambda tmp: np.array([[1, "b"]], dtype=object), ValueError, "vectors must be numbers"),
    ("bytes in an array", lambda tmp: np.array([[b"a", b"b"]]), TypeError, "give images, paths or vectors"),
    ("sparse", lambda tmp: scipy.sparse.eye_array(3).tocsr(), TypeError, "sparse.*toarray"),
    ("NaN in a table", lambda tmp: [[1.0, np.nan]], ValueError, "NaN or infinite"),
    ("infinity in a table", lambda tmp: np.array([[np.inf]]), ValueError, "NaN or infinite"),
    ("grey arrays", lambda tmp: np.zeros((2, 4, 5), np.uint8), ValueError, r"Grey images: give np.repeat"),
    ("uint8 tensor", lambda tmp: torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ValueError, r"float \(N, 3, H, W\)"),
    ("grey tensor", lambda tmp: torch.zeros(2, 1, 4, 4), ValueError, r"float \(N, 3, H, W\)"),
    ("NaN in a tensor", lambda tmp: torch.full((2, 3, 4, 4), torch.nan), ValueError, "image 0: NaN"),
    ("generator of numbers", lambda tmp: (x for x in [1]), ValueError, r"\(n, d\).*\(1,\)"),
    ("generator of kinds", lambda tmp: iter(["a.png", Image.new("RGB", (2, 2))]), TypeError, "iterator X mixes PIL"),
    ("open file", lambda tmp: io.BytesIO(b"a.png"), TypeError, r"open file \(BytesIO\).*X.read\(\)"),
]


@pytest.mark.parametrize(("make", "error", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_data(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        as_source(make(tmp_path))


def test_iterable_dataset():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

        def __len__(self):
            return 3

    with pytest.raises(TypeError, match="map-style"):
        as_source(Stream())


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(1, 4, 4), r"dataset item 1 must be.*float32 \(1, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int16), "dataset item 1 must be.*int16"),
        (np.zeros((4, 4, 3)), "dataset item 1 must be.*ndarray"),
        ({"image": 0}, "dataset item 1 must be.*dict"),
        (torch.full((3, 4, 4), 2.0), r"dataset item 1: .*\[0, 1\]"),
        (torch.full((3, 4, 4), torch.nan), "dataset item 1: NaN"),
        (Image.fromarray(np.ones((2, 2), np.float32)), "dataset item 1: .*no known range"),
    ],
)
def test_bad_dataset_items_are_named(item, message):
    """One at a time, as they are loaded: so they can be skipped."""
    source = as_source(Pictures([(torch.zeros(3, 4, 4), 0), (item, 0)]))
    source.load(0)
    with pytest.raises(ImageReadError, match=message):
        source.load(1)


@given(hnp.arrays(np.float64, (2, 2, 2, 3), elements=st.floats(0, 1) | st.sampled_from([np.nan, np.inf, -0.1, 1.1])))
@settings(max_examples=60, deadline=None)
def test_float_pixels_are_taken_exactly_where_all_lie_in_the_unit_interval(X):
    if ((X >= 0) & (X <= 1)).all():
        np.testing.assert_array_equal(as_source(X).load(1), X[1])
    else:
        with pytest.raises(ValueError, match=r"NaN|\[0, 1\]"):
            as_source(X)


def test_files_load_from_several_threads(folder, pixels):
    from concurrent.futures import ThreadPoolExecutor

    opened = [Image.open(path) for path in sorted(folder.iterdir())]
    for source in (folder_source(folder), as_source(opened)):
        with ThreadPoolExecutor(4) as pool:
            loaded = list(pool.map(source.load, [i % 5 for i in range(40)]))
        for i, image in enumerate(loaded):
            np.testing.assert_array_equal(uint8(image), pixels[i % 5])


def test_source_by_hand():
    source = as_source(Source(np.array(["a", "b"]), lambda i: np.zeros(2), is_vector=True), ids=["x", "y"])
    assert source.ids.tolist() == ["x", "y"]
    assert source.is_vector


@pytest.mark.parametrize("size", [(1, 201), (402, 2)])
def test_a_strip_is_refused_before_it_fills_the_memory(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "strip.png")
    with pytest.raises(ImageReadError, match=rf"strip\.png.*{size[0]} x {size[1]} pixels"):
        as_source(tmp_path).load(0)
    Image.new("RGB", (1, 200)).save(tmp_path / "strip.png")
    assert as_source(tmp_path).load(0).size == (1, 200)


class TestSample:
    def test_is_drawn_in_the_order_of_the_source(self):
        source = as_source(np.arange(40.0).reshape(20, 2))
        drawn = source.sample(5, seed=1)
        positions = [source.ids.tolist().index(name) for name in drawn.ids.tolist()]
        assert positions == sorted(positions)
        assert len(set(positions)) == 5
        assert drawn.ids.tolist() == source.sample(5, seed=1).ids.tolist()
        assert drawn.ids.tolist() != source.sample(5, seed=2).ids.tolist()

    @pytest.mark.parametrize("n", [None, 20, 21])
    def test_all_where_there_are_no_more(self, n):
        source = as_source(np.arange(40.0).reshape(20, 2))
        assert source.sample(n, seed=0) is source
