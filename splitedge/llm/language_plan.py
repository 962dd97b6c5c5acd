"""What a language deployment is made of, and its two halves as edge and cloud take them."""

from __future__ import annotations

from dataclasses import dataclass

from splitedge.edge.language import EdgeLanguage
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.cloud_model import CloudLanguageModel
from splitedge.llm.exit_model import ExitModel
from splitedge.llm.exits import TrainedExits
from splitedge.llm.halves import LanguageHead, LanguageTail
from splitedge.llm.state_codecs import state_codec
from splitedge.llm.token_model import WholeModel
from splitedge.wire import Lane

#: Name of the codec of a lane on which ids are sent.
IDS = "ids"


class CloudHalf:
    """The cloud's half of a language deployment; see `cloud.desk.LanguageHalf`."""

    def __init__(self, digest: str, models: dict[Lane, CloudLanguageModel]) -> None:
        self._digest, self._models = digest, models

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle."""
        return self._digest

    @property
    def models(self) -> dict[Lane, CloudLanguageModel]:
        """What computes each lane."""
        return self._models


@dataclass(frozen=True)
class LanguagePlan:
    """What a language deployment is made of.

    Attributes:
        head, tail: of the model, at `cut`.
        anatomy: of the whole.
        cut: blocks that the device runs of it.
        codec: name of the codec of hidden states that cross there; `ids` for none.
        local: a complete small model of the same vocabulary for the device; None for none.
        exits: trained exits; None before `fit`, or where there are none.
        depths: blocks before each exit that is wanted.
        stops: ids that end a text.
    """

    head: LanguageHead
    tail: LanguageTail
    anatomy: Anatomy
    cut: int
    codec: str
    local: WholeModel | None
    exits: TrainedExits | None
    depths: tuple[int, ...]
    stops: frozenset[int]

    def lanes(self, digest: str) -> tuple[Lane | None, Lane | None]:
        """Lane of ids, and of hidden states."""
        if self.codec == IDS:
            return Lane(digest, "", IDS), None
        return None, Lane(digest, f"blocks.{self.cut}", f"{self.codec}:{self.anatomy.hidden}")

    def cloud(self, digest: str) -> CloudHalf:
        """The cloud's half."""
        ids, states = self.lanes(digest)
        models = {}
        if ids is not None:
            models[ids] = CloudLanguageModel(self.head, self.tail, self.anatomy)
        if states is not None:
            codec = state_codec(self.codec, self.anatomy.hidden)
            models[states] = CloudLanguageModel(None, self.tail, self.anatomy, codec)
        return CloudHalf(digest, models)

    def edge(self, digest: str) -> EdgeLanguage:
        """The edge's half."""
        ids, states = self.lanes(digest)
        head = None
        if self.exits is not None:
            head = ExitModel(self.head, self.anatomy, self.exits)
        return EdgeLanguage(
            vocabulary=self.anatomy.vocabulary,
            context=self.anatomy.context,
            draft=None if self.local is None else self.local.fresh,
            exits=None if head is None else head.fresh,
            ids_lane=ids,
            states_lane=states,
            codec=None if states is None else state_codec(self.codec, self.anatomy.hidden),
        )
