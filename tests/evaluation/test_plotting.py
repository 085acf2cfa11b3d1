import numpy as np
import pytest
import torch
from oracles import random_images
from PIL import Image

from skjepa.data.images import as_picture
from skjepa.evaluation.plotting import Thumbnail, ranks_figure, save_figure, score_figure
from skjepa.inspection.volume_map_figure import volume_maps_figure


def thumbnails(n):
    return [Thumbnail(Image.fromarray(image), float(i), i < 2, f"{i}.png") for i, image in enumerate(random_images(n))]


def test_what_a_person_sees():
    rng = np.random.default_rng(0)
    groups = {"normal": rng.normal(size=100), "foreign": np.append(rng.normal(-5, 1, size=50), np.nan)}
    rows = {"most_typical": thumbnails(5), "least_typical": thumbnails(4)}
    figure = score_figure(groups, threshold=-2.0, title="Title", **rows)
    top, typical, odd = figure.subfigs
    axes = top.axes[0]
    assert axes.get_title() == "Title"
    labels = [axes.get_ylabel() for axes in top.axes]
    flagged = [int((groups["normal"] < -2).sum()), int((groups["foreign"] < -2).sum())]
    assert labels == [f"normal\n{flagged[0]} of 100 flagged", f"foreign\n{flagged[1]} of 50 flagged"]
    assert axes.lines[0].get_xdata()[0] == -2.0
    assert (len(typical.axes), len(odd.axes)) == (5, 4)
    assert typical.axes[3].get_title() == "3.0"


def test_every_sample_is_in_the_histogram_even_far_outside():
    figure = score_figure({"all": np.append(np.linspace(0, 1, 999), 1e9)}, threshold=0.5)
    bars = figure.subfigs[0].axes[0].patches
    assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1)


def test_equal_scores_draw():
    score_figure({"all": np.ones(5)}, threshold=1.0)


def test_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = score_figure({"all": np.arange(5.0)}, threshold=1.0, least_typical=thumbnails(2))
    path = save_figure(figure, tmp_path / "scores.png")
    with Image.open(path) as picture:
        assert picture.size[0] > 800
    before = path.read_bytes()

    def full(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(type(figure), "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        save_figure(figure, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["scores.png"]


def test_bars_join_what_is_not_told_apart():
    figure = ranks_figure({"c": 3.4, "a": 1.0, "b": 2.0, "d": 3.6}, critical_difference=1.5)
    axes = figure.axes[0]
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 3]
    assert [tuple(bar) for bar in bars] == [(1.0, 2.0), (2.0, 3.4), (3.4, 3.6)]
    names = [text.get_text().split()[-1] for text in axes.texts[:4]]
    assert names == ["a", "b", "c", "d"]


@pytest.mark.parametrize("kind", ["uint8", "float", "tensor"])
def test_samples_as_pictures(kind):
    pixels = random_images(1)[0]
    floats = pixels / np.float32(255)
    sample = {"uint8": pixels, "float": floats, "tensor": torch.from_numpy(floats).permute(2, 0, 1)}[kind]
    assert np.array_equal(np.asarray(as_picture(sample)), pixels)


def test_volume_maps_figure_shows_every_image_and_its_map():
    from skjepa.inspection.volume_maps import VolumeMaps

    shares = np.random.default_rng(0).normal(size=(3, 4, 4))
    volume = shares.sum(axis=(1, 2)) - 7
    maps = VolumeMaps(np.array(["a", "b", "c"]), shares, -7.0, np.zeros(3), np.zeros(3), volume, 8, (3, 32, 32))
    figure = volume_maps_figure(list(random_images(3)), maps, ["one", "two", "three"])
    assert len(figure.axes) == 7  # two rows and the colour bar
    assert [axes.get_title() for axes in figure.axes[:3]] == ["one", "two", "three"]
    assert figure.axes[3].get_xlabel() == f"{volume[0] + 7:+.1f} nats"
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), maps.pixels(1))
    figure.canvas.draw()
