"""What the recipe needs to know of an architecture: its parts, its prompt, and how its tower sees.

Contract: all methods but the ``make_`` ones work on modules that were made before and change nothing but these. A
picture of Tabletop has one visual token for each of its 24 x 24 patches, in row-major order, whatever the architecture.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Architecture(ABC):
    """One kind of model; see the methods.

    Attributes
    ----------
    name : str
    specials : tuple of str
        Special tokens in the order of their ids.
    pad, eos : str
        Of these.
    before, between, after, suffix : str
        Text of a prompt ahead of its pictures, between two, behind them, and behind the question.
    width : int
        Channels of the tower's features.
    span : int
        How many positions a picture of 24 x 24 tokens takes in the language model.
    knows_place : bool
        Whether the tower has positions that say where in the picture a patch is.
    normalised : bool
        Whether the language model normalises queries and keys; else they are reined in.
    """

    name: ClassVar[str]
    specials: ClassVar[tuple[str, ...]]
    pad: ClassVar[str]
    eos: ClassVar[str]
    before: ClassVar[str]
    between: ClassVar[str] = ""
    after: ClassVar[str] = ""
    suffix: ClassVar[str]
    width: ClassVar[int]
    span: ClassVar[int]
    knows_place: ClassVar[bool]
    normalised: ClassVar[bool]

    @abstractmethod
    def make_model(self) -> PreTrainedModel:
        """The untrained model in float32."""

    @abstractmethod
    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer."""

    @abstractmethod
    def make_processor(self) -> Any:
        """Its processor, which works without torchvision."""

    @abstractmethod
    def make_tower(self) -> nn.Module:
        """A vision tower as training starts."""

    @abstractmethod
    def start_tower(self, tower: nn.Module) -> None:
        """Change an untrained tower so that it starts by looking at neighbours."""

    def add_ramps(self, tower: nn.Module) -> None:
        """Change a half-trained tower so that its features can tell where they are, if it has positions for it."""
        raise ValueError(f"the tower of {self.name} has no positions to write into")

    @abstractmethod
    def put_tower(self, model: PreTrainedModel, tower: nn.Module) -> None:
        """Make a tower that of a model."""

    @abstractmethod
    def features(self, tower: nn.Module, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the tower passes on for each visual token (B, N, width) and, if it has one, its class state (B, D).

        ``pixels`` is (B, 3, H, W), sides multiples of 14, and ``rows`` (B, N) says which of the 576 places of a whole
        picture these are.
        """

    @abstractmethod
    def project(self, model: PreTrainedModel, features: Tensor) -> Tensor:
        """Visual tokens (B, N, D) of features (B, N, width)."""

    @abstractmethod
    def projector(self, model: PreTrainedModel) -> nn.Module:
        """What `project` trains."""

    @abstractmethod
    def matrices(self, model: PreTrainedModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Matrices that Muon trains: those at the full rate, and queries and keys that need a lower one."""

    @abstractmethod
    def rate_of(self, name: str, parameter: Tensor) -> str | None:
        """How a parameter of the tower is trained: "first", "looking", "matrix", "other"; None: with the projector."""

    @abstractmethod
    def positions(self, start: int, keep: Tensor) -> Tensor:
        """Positions (axes, B, K) in the language model of the visual tokens ``keep`` (B, K) of a picture.

        ``start`` is the position of what would come if there were no picture.
        """

    def finish(self, model: PreTrainedModel) -> None:  # noqa: B027 - most have nothing to do
        """Change a trained model back to what the stock class saves."""

    def save_processor(self, folder: Path) -> None:
        """Write the processor as plain ``from_pretrained`` reads it."""
        self.make_processor().save_pretrained(folder)
