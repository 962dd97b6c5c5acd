"""Rankings to compare a router with: RouteLLM's two trained ones in kind, and plain ones.

RouteLLM embeds each prompt by a hosted service; here both get the n-grams that our router gets, so that what
is compared is the method.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from splitedge.llm.queries import Hashing, rarity
from splitedge.llm.router import weighed

Floats = npt.NDArray[np.float64]


class Similar:
    """Similarity-weighted ranking: each query asks a Bradley-Terry model of all known ones, weighed by
    10^(1 + similarity / greatest similarity). Of two models that is the weighted share of the cloud's wins;
    a tie counts half.
    """

    def __init__(self, texts: Sequence[str], edge: Floats, cloud: Floats, hashing: Hashing) -> None:
        counts = hashing(texts)
        self._hashing, self._rarity = hashing, rarity(counts)
        self._known = weighed(counts, self._rarity)
        self._won = 0.5 + 0.5 * np.sign(cloud - edge)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """How much the cloud is wanted, (texts,)."""
        asked, out = weighed(self._hashing(texts), self._rarity), []
        for begin in range(0, asked.shape[0], 500):
            near = (asked[begin : begin + 500] @ self._known.T).toarray()
            weight = 10.0 ** (1.0 + near / np.maximum(near.max(axis=1, keepdims=True), 1e-9))
            out.append((weight * self._won).sum(axis=1) / weight.sum(axis=1))
        return np.concatenate(out)


class Factors:
    """Matrix factorisation: a win of model m on query q has log-odds w . (v_m * (A q)), with q 64 principal
    directions of the n-grams; v and A are trained on wins by gradient descent, ties left out as there.
    """

    def __init__(
        self, texts: Sequence[str], edge: Floats, cloud: Floats, hashing: Hashing, epochs: int = 60
    ) -> None:
        from sklearn.decomposition import TruncatedSVD

        counts = hashing(texts)
        self._hashing, self._rarity = hashing, rarity(counts)
        x = weighed(counts, self._rarity)
        self._svd = TruncatedSVD(64, random_state=0).fit(x)
        rows = np.flatnonzero(edge != cloud)
        q = torch.tensor(self._svd.transform(x[rows]), dtype=torch.float32)
        q = torch.nn.functional.normalize(q, dim=1)
        won = torch.tensor((cloud > edge)[rows], dtype=torch.float32)
        torch.manual_seed(0)
        self._project, self._models = torch.nn.Linear(64, 128), torch.nn.Embedding(2, 128)
        self._judge = torch.nn.Linear(128, 1, bias=False)
        weights = [w for net in (self._project, self._models, self._judge) for w in net.parameters()]
        optimiser = torch.optim.AdamW(weights, lr=3e-3, weight_decay=1e-2)
        for _ in range(epochs):
            for batch in torch.randperm(len(q)).split(64):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(self._odds(q[batch]), won[batch])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()

    def _odds(self, q: torch.Tensor) -> torch.Tensor:
        v = torch.nn.functional.normalize(self._models.weight, dim=1)
        odds: torch.Tensor = self._judge(self._project(q) * (v[1] - v[0])).squeeze(-1)
        return odds

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Floats:
        """How much the cloud is wanted, (texts,)."""
        x = self._svd.transform(weighed(self._hashing(texts), self._rarity))
        q = torch.nn.functional.normalize(torch.tensor(x, dtype=torch.float32), dim=1)
        return self._odds(q).double().numpy()


def by_topic(
    topics: Sequence[str], train: npt.NDArray[np.int64], test: npt.NDArray[np.int64], gain: Floats
) -> Floats:
    """Mean gain of each topic on training rows: what a router that were told the topic could do, (test,)."""
    known: dict[str, list[float]] = {}
    for i in train:
        known.setdefault(topics[i], []).append(float(gain[i]))
    whole = float(gain[train].mean())
    return np.array([np.mean(known.get(topics[i], [whole])) for i in test])
