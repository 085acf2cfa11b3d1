import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks.accuracy import tiles
from benchmarks.common.defect_sets import GOOD, magnetic_tiles, mvtec, visa
from benchmarks.common.pixel_metrics import FPR_LIMIT, pixel_counts
from skjepa import load_encoder


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def texture(rng, side=40):
    return rng.integers(100, 156, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def category(tmp_path):
    """A folder in MVTec's layout: good pictures, and some with a bright square."""
    rng = np.random.default_rng(0)
    for i in range(30):
        save(tmp_path / "train" / "good" / f"{i:03d}.png", texture(rng))
    for i in range(6):
        save(tmp_path / "test" / "good" / f"{i:03d}.png", texture(rng))
        odd, mask = texture(rng), np.zeros((40, 40), dtype=np.uint8)
        odd[12:22, 16:26], mask[12:22, 16:26] = 255, 255
        save(tmp_path / "test" / "scratch" / f"{i:03d}.png", odd)
        save(tmp_path / "ground_truth" / "scratch" / f"{i:03d}_mask.png", mask)
    return tmp_path


def test_a_category_of_mvtec_is_read_with_its_split_and_masks(category):
    found = mvtec(category)
    assert len(found) == 42
    assert found.is_train.sum() == 30
    assert found.is_good.sum() == 36
    odd = int(np.flatnonzero(found.kinds == "scratch")[0])
    assert found.mask(odd).sum() == 100
    assert found.mask(0).sum() == 0


def test_a_defect_that_is_plain_to_see_is_found_in_a_category(category):
    found = tiles.of_category(mvtec(category), load_encoder("bundled"))
    assert found["image_auroc"] == 1
    assert found["pixel_auroc"] > 0.85
    assert found["pro"] > 0.6


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        mvtec(tmp_path)


def test_a_category_of_visa_is_read_by_its_table(tmp_path):
    (tmp_path / "split_csv").mkdir()
    rows = [
        "object,split,label,image,mask",
        "pcb1,train,normal,a.png,",
        "pcb1,test,anomaly,b.png,m.png",
        "fryum,test,normal,c.png,",
    ]
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    rng = np.random.default_rng(0)
    save(tmp_path / "b.png", texture(rng))
    save(tmp_path / "m.png", np.eye(40, dtype=np.uint8))  # VisA numbers its kinds of defects from 1
    found = visa(tmp_path, "pcb1")
    assert found.kinds.tolist() == [GOOD, "anomaly"]
    assert found.is_train.tolist() == [True, False]
    assert found.mask(1).sum() == 40


def test_the_command_line_reads_a_category_of_visa(category, monkeypatch, capsys):
    rows = ["object,split,label,image,mask"]
    rows += [f"pcb1,train,normal,train/good/{i:03d}.png," for i in range(30)]
    rows += [f"pcb1,test,normal,test/good/{i:03d}.png," for i in range(6)]
    masks = "ground_truth/scratch"
    rows += [f"pcb1,test,anomaly,test/scratch/{i:03d}.png,{masks}/{i:03d}_mask.png" for i in range(6)]
    (category / "split_csv").mkdir()
    (category / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(tiles, "encoder_of", lambda *given: load_encoder("bundled"))
    command = ["tiles", "--visa", str(category), "--category", "pcb1"]
    monkeypatch.setattr("sys.argv", [*command, "--encoder", "bundled"])
    tiles.main()
    assert "'image_auroc': 1.0" in capsys.readouterr().out

    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        tiles.main()
    assert "--mvtec and --visa need --encoder" in capsys.readouterr().err


def test_tiles_are_grouped_by_the_part_that_they_show(tmp_path):
    (tmp_path / "tiles.csv").write_text("image,kind,tile\ngood/a.jpg,good,1\ncrack/b.jpg,crack,1\n")
    found = magnetic_tiles(tmp_path)
    assert found.groups.tolist() == ["1", "1"]
    assert found.masks == [None, tmp_path / "masks" / "crack" / "b.png"]


def test_pixel_auroc_is_that_of_all_pixels_and_pro_a_mean_over_regions():
    rng = np.random.default_rng(0)
    masks = [np.zeros((30, 30), dtype=bool) for _ in range(3)]
    masks[0][2:6, 2:6] = masks[0][20:29, 10:29] = masks[1][5:9, 5:9] = True
    maps = [rng.normal(size=(30, 30)) + 1.5 * mask for mask in masks]
    counts = pixel_counts(maps, masks)

    flat = np.concatenate([mask.ravel() for mask in masks]), np.concatenate([values.ravel() for values in maps])
    assert counts.auroc() == pytest.approx(roc_auc_score(*flat), abs=1e-3)

    # by definition, at every threshold: mean share of the three regions against the share of good pixels
    thresholds = np.sort(flat[1])[::-1]
    regions = [maps[0][2:6, 2:6], maps[0][20:29, 10:29], maps[1][5:9, 5:9]]
    good = np.sort(flat[1][~flat[0]])
    fpr = 1 - np.searchsorted(good, thresholds, side="left") / len(good)
    overlap = np.mean([[(region >= t).mean() for t in thresholds] for region in regions], axis=0)
    below = fpr <= FPR_LIMIT
    expected = np.trapezoid(overlap[below], fpr[below]) / FPR_LIMIT
    assert counts.pro() == pytest.approx(expected, abs=0.01)


def test_pictures_that_count_twice_count_as_two():
    rng = np.random.default_rng(0)
    masks = [rng.random((20, 20)) < 0.2 for _ in range(3)]
    maps = [rng.normal(size=(20, 20)) + mask for mask in masks]
    twice = pixel_counts([*maps, maps[0]], [*masks, masks[0]])
    assert pixel_counts(maps, masks).auroc(np.array([2.0, 1, 1])) == pytest.approx(twice.auroc(), abs=2e-3)
