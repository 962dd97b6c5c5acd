"""Boosted regression trees as plain arrays, evaluated with NumPy: no pickle, and no scikit-learn to decide
by.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from splitedge.policies.model_file import Model

MAX_DEPTH = 8


class TreeArrays(Model):
    """Sums of trees of one depth, one sum for each output.

    A tree of depth d is complete: node i has the children 2i+1 and 2i+2, a row goes to the first where its
    feature is at most the threshold. A branch that ended early goes on with equal leaves.

    Attributes:
        features: numbers a row has.
        depth: of every tree.
        base: what each output starts from, (outputs,).
        feature, threshold: of each node, (outputs, trees, 2**depth - 1).
        leaf: of each leaf, the learning rate multiplied in, (outputs, trees, 2**depth).
    """

    features: int = Field(ge=1, le=4096)
    depth: int = Field(ge=1, le=MAX_DEPTH)
    base: tuple[float, ...]
    feature: tuple[tuple[tuple[int, ...], ...], ...]
    threshold: tuple[tuple[tuple[float, ...], ...], ...]
    leaf: tuple[tuple[tuple[float, ...], ...], ...]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        outputs, nodes = len(self.base), 2**self.depth - 1
        trees = len(self.leaf[0]) if self.leaf else 0
        wanted = {"feature": nodes, "threshold": nodes, "leaf": nodes + 1}
        for name, size in wanted.items():
            part = getattr(self, name)
            shape = [len(part)] + [len(trees_) for trees_ in part] + [len(row) for t in part for row in t]
            if shape != [outputs] + [trees] * outputs + [size] * outputs * trees or not outputs * trees:
                raise ValueError(f"'{name}' is not of shape ({outputs}, {trees}, {size})")
        if any(not 0 <= f < self.features for output in self.feature for tree in output for f in tree):
            raise ValueError(f"a node reads a feature that is not one of {self.features}")
        return self


class Trees:
    """What `TreeArrays` holds, ready to be evaluated."""

    def __init__(self, arrays: TreeArrays) -> None:
        self.arrays = arrays
        self._base = np.array(arrays.base)
        outputs, trees = len(arrays.leaf), len(arrays.leaf[0])
        self._shape = outputs, trees
        self._feature = np.array(arrays.feature, np.int64).reshape(outputs * trees, -1)
        self._threshold = np.array(arrays.threshold, np.float64).reshape(outputs * trees, -1)
        self._leaf = np.array(arrays.leaf, np.float64).reshape(outputs * trees, -1)
        nodes = self._feature.shape[1]
        self._at = np.arange(outputs * trees) * nodes
        self._leaf_at = np.arange(outputs * trees) * (nodes + 1) - nodes
        self._flat_feature = self._feature.reshape(-1)
        self._flat_threshold = self._threshold.reshape(-1)
        self._flat_leaf = self._leaf.reshape(-1)

    def __call__(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Outputs (..., outputs) of rows (..., features); as scikit-learn, features are rounded to float32.

        Raises:
            ValueError: the rows have another number of features.
        """
        if rows.shape[-1] != self.arrays.features:
            raise ValueError(f"rows of {rows.shape[-1]} features, these trees read {self.arrays.features}")
        x = rows.astype(np.float32)
        node = np.zeros((*x.shape[:-1], len(self._at)), np.int64)
        for _ in range(self.arrays.depth):
            place = node + self._at
            feature = self._flat_feature[place]
            value = x[feature] if x.ndim == 1 else np.take_along_axis(x, feature, -1)
            node = 2 * node + 1 + (value > self._flat_threshold[place])
        sums = self._flat_leaf[node + self._leaf_at].reshape(*x.shape[:-1], *self._shape).sum(-1)
        return np.asarray(self._base + sums)


def export(models: list[Any], features: int, base: list[float]) -> TreeArrays:
    """The arrays of fitted gradient-boosting models of scikit-learn, one output each.

    Args:
        models: `GradientBoostingRegressor`s, or `GradientBoostingClassifier`s of two classes (log-odds).
        features: numbers a row has.
        base: what each begins from: the constant of its `init_`.

    Raises:
        ValueError: a tree is deeper than `MAX_DEPTH`, or the models have not equally many trees.
    """
    depth = max(1, *(tree[0].tree_.max_depth for model in models for tree in model.estimators_))
    if depth > MAX_DEPTH:
        raise ValueError(f"trees of depth {depth}; at most {MAX_DEPTH} can be kept")
    each = [[_complete(t[0].tree_, depth, float(m.learning_rate)) for t in m.estimators_] for m in models]
    return TreeArrays(
        features=features,
        depth=depth,
        base=tuple(base),
        feature=tuple(tuple(tree[0] for tree in trees) for trees in each),
        threshold=tuple(tuple(tree[1] for tree in trees) for trees in each),
        leaf=tuple(tuple(tree[2] for tree in trees) for trees in each),
    )


def _complete(
    tree: Any, depth: int, rate: float
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """(feature, threshold, leaf) of one tree, filled up to a complete one."""
    feature, threshold = [0] * (2**depth - 1), [0.0] * (2**depth - 1)
    leaf = [0.0] * 2**depth

    def walk(node: int, place: int, level: int) -> None:
        ended = tree.children_left[node] < 0
        if level == depth:
            leaf[place - (2**depth - 1)] = rate * float(tree.value[node][0][0])
            return
        if not ended:
            feature[place], threshold[place] = int(tree.feature[node]), float(tree.threshold[node])
        walk(node if ended else tree.children_left[node], 2 * place + 1, level + 1)
        walk(node if ended else tree.children_right[node], 2 * place + 2, level + 1)

    walk(0, 0, 0)
    return tuple(feature), tuple(threshold), tuple(leaf)
