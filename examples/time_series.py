"""
Detect unknown speakers in recordings
=====================================

Train a small encoder of time series without labels by ``pretrain``, and fit a detector on top of it. The series are
real speech: nine men say two Japanese vowels, 640 recordings in all, as twelve cepstral coefficients over time (Kudo,
Toyama and Shimbo, 1999). Five speakers are known, the other four are unknown. The example needs ``pip install aeon``,
which contains the data (``--no-deps`` is enough, because only the data are read).
"""

from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from skjepa import JEPAScoreDetector, KNNDetector, MahalanobisDetector, extract, load_encoder
from skjepa.pretraining import PretrainConfig, VectorViewOptions, pretrain

N_CHANNELS, N_TIMES = 12, 16


# %%
# Series of one length
# --------------------
# The recordings have 7 to 29 time steps; each is resampled to 16 by linear interpolation. The encoder's input is this
# 12 by 16 matrix: scores of series of different lengths could not be compared.


def read(part):
    """Series (n, 12, 16) and speakers, 1 to 9."""
    file = Path(find_spec("aeon").origin).parent / f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"
    series, speakers = [], []
    for line in file.read_text().split("@data")[1].strip().splitlines():
        *channels, speaker = line.split(":")
        matrix = np.array([channel.split(",") for channel in channels], dtype=float)
        moments = np.linspace(0, matrix.shape[1] - 1, N_TIMES)
        series.append([np.interp(moments, np.arange(len(row)), row) for row in matrix])
        speakers.append(int(speaker))
    return np.array(series), np.array(speakers)


series, speakers = (np.concatenate(parts) for parts in zip(read("TRAIN"), read("TEST"), strict=True))
known, strangers = series[speakers <= 5], series[speakers > 5]
print(f"{len(known)} recordings of 5 known speakers, {len(strangers)} of 4 unknown ones")


# %%
# Train, fit, test
# ----------------
# Any network that takes rows of numbers works; this one folds a row back into channels and time steps. Two views of a
# series differ by noise and by some values from another recording, and the InfoNCE loss tells recordings apart.
# Encoder, standardisation and detectors learn from 240 recordings of the known speakers. The other recordings are for
# the test, and no setting was chosen by them.


class SeriesNet(nn.Module):
    def __init__(self, n_components=16):
        super().__init__()
        self.features = nn.Sequential(
            nn.Unflatten(1, (N_CHANNELS, N_TIMES)),
            nn.Conv1d(N_CHANNELS, 64, 5, padding=2),
            nn.SiLU(),
            nn.Conv1d(64, 64, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(64 * N_TIMES // 2, n_components)

    def forward(self, x):
        return self.head(self.features(x))


def scores(seed):
    """Scores of unseen recordings of known and of unknown speakers, by each detector."""
    order = np.random.default_rng(seed).permutation(len(known))
    fit, test = known[order[:240]], known[order[240:]]
    mean, std = fit.mean(axis=(0, 2), keepdims=True), fit.std(axis=(0, 2), keepdims=True)
    fit, test, foreign = (((part - mean) / std).reshape(len(part), -1) for part in (fit, test, strangers))
    torch.manual_seed(seed)
    network = SeriesNet()
    views = VectorViewOptions(noise=0.3, mask=0.1)
    config = PretrainConfig(epochs=60, batch_size=80, objective="info_nce", views=views, n_watched=0, seed=seed)
    pretrain(network, torch.tensor(fit, dtype=torch.float32), config)
    encoder = load_encoder(network)
    measured = {name: extract(encoder, rows) for name, rows in (("fit", fit), ("test", test), ("foreign", foreign))}
    found = {}
    for name, detector in detectors(encoder).items():
        detector.fit(measured["fit"])
        found[name] = detector.score_samples(measured["test"]), detector.score_samples(measured["foreign"])
    return found


def detectors(encoder):
    return {
        "volume alone (JEPA-SCORE)": JEPAScoreDetector(encoder, formula="jepa"),
        "default": JEPAScoreDetector(encoder, method="forward"),  # as of any vectors: no backward pass
        "Mahalanobis": MahalanobisDetector(),
        "Mahalanobis++": MahalanobisDetector(normalize=True),
        "kNN": KNNDetector(),
        "kNN, normalised": KNNDetector(normalize=True),
    }


def aurocs(found):
    return {
        name: roc_auc_score(np.r_[np.zeros(len(on)), np.ones(len(off))], -np.r_[on, off])
        for name, (on, off) in found.items()
    }


found = scores(0)
print("AUROC, higher is better")
for name, value in aurocs(found).items():
    print(f"  {name:26} {value:.3f}")

# %%
# The figures show a recording of a known and of an unknown speaker, and the scores of all recordings in standard
# deviations of the known ones; higher = more normal. Values beyond 8 are drawn at 8.

figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
for square, matrix, title in ((axes[0], known[0], "a known speaker"), (axes[1], strangers[0], "an unknown speaker")):
    square.imshow(matrix, aspect="auto", cmap="RdBu_r", vmin=-2, vmax=2)
    square.set(xlabel="time", ylabel="cepstral coefficient", xticks=[], yticks=[], title=title)
for square, name in zip(axes[2:], ("volume alone (JEPA-SCORE)", "default"), strict=True):
    on, off = found[name]
    for values, label, colour in ((on, "known", "#3b6ea8"), (off, "unknown", "#e07a5f")):
        shown = np.clip((values - on.mean()) / on.std(), -8, 4)
        square.hist(shown, bins=np.linspace(-8, 4, 25), density=True, alpha=0.7, color=colour, label=label)
    square.set(yticks=[], xlabel="score")
    square.set_title(name, fontsize=10)
axes[2].legend(fontsize=8)
plt.show()
