from .collection import prune as prune
from .rules import Pruned as Pruned
from .rules import prune_scores as prune_scores
