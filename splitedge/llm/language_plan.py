"""What a language deployment is made of, and its two halves as edge and cloud take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from splitedge.edge.language import EdgeLanguage
from splitedge.errors import ConfigError
from splitedge.llm.aids import Aids
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.cloud_model import CloudLanguageModel, StateCodec
from splitedge.llm.exit_model import ExitModel, Fill
from splitedge.llm.exits import TrainedExits
from splitedge.llm.gate import GatedModel
from splitedge.llm.halves import LanguageHead, LanguageTail
from splitedge.llm.state_bottleneck import Bottleneck, is_bottleneck
from splitedge.llm.state_codecs import state_codec
from splitedge.llm.token_model import TokenModel, WholeModel
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
        kv_fill: see `deploy_language`.
        bottleneck: the trained codec where `codec` is `bottleneck`; None before `fit`, and otherwise.
        aids: what was trained to choose between device and cloud.
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
    kv_fill: Fill = "exact"
    bottleneck: Bottleneck | None = None
    aids: Aids = field(default_factory=Aids)

    def lanes(self, digest: str) -> tuple[Lane | None, Lane | None]:
        """Lane of ids, and of hidden states."""
        if self.codec == IDS:
            return Lane(digest, "", IDS), None
        return None, Lane(digest, f"blocks.{self.cut}", f"{self.codec}:{self.anatomy.hidden}")

    def state_codec(self) -> StateCodec:
        """What writes and reads hidden states.

        Raises:
            ConfigError: it is a bottleneck that was not trained yet, or the codec is `ids`.
        """
        if is_bottleneck(self.codec):
            if self.bottleneck is None:
                raise ConfigError(f"the codec '{self.codec}' is learned and was not trained yet: call fit()")
            return self.bottleneck
        return state_codec(self.codec, self.anatomy.hidden)

    def cloud(self, digest: str) -> CloudHalf:
        """The cloud's half."""
        ids, states = self.lanes(digest)
        models = {}
        if ids is not None:
            models[ids] = CloudLanguageModel(self.head, self.tail, self.anatomy)
        if states is not None:
            codec = self.state_codec()
            models[states] = CloudLanguageModel(None, self.tail, self.anatomy, codec)
        return CloudHalf(digest, models)

    def edge(self, digest: str) -> EdgeLanguage:
        """The edge's half."""
        ids, states = self.lanes(digest)
        head = None
        if self.exits is not None:
            head = ExitModel(self.head, self.anatomy, self.exits, fill=self.kv_fill)
        return EdgeLanguage(
            vocabulary=self.anatomy.vocabulary,
            context=self.anatomy.context,
            draft=self._draft(),
            exits=None if head is None else head.fresh,
            ids_lane=ids,
            states_lane=states,
            codec=None if states is None else self.state_codec(),
        )

    def _draft(self) -> Callable[[], TokenModel] | None:
        if self.local is None:
            return None
        return self.local.fresh if self.aids.gate is None else GatedModel(self.local, self.aids.gate).fresh
