"""Every setting of a fit, the candidates that held-out queries choose among, and the methods that have a name."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smec_st.losses.settings import FORMS, LossSettings
from smec_st.stages import NARROW_HIDDEN as NARROW_HIDDEN
from smec_st.system.errors import DataError, whole_number

#: What learning from neighbourhoods alone needs: the nearest documents of each query in its pool (without them 24
#: dims lose .05 on SciFact), and counterfactual queries, as documents are asked for that no query is near.
_NEIGHBOURHOODS = {"rank_weight": 0.0, "top_k": 10, "shadow_share": 0.5, "steps": 150, "random_rows": 1024}
#: Width of the hidden layer where labels are classes. A class need not be one cone in the vectors' space, and a linear
#: map cannot bend several into one: dev queries of clothing_images gain .05 at every one of the default sizes.
CLASS_HIDDEN = 1024
#: What held-out queries choose among, and the settings that make each candidate what it is. The first one, the fit
#: without labels, is taken where nothing is surely better; from there on each reads more out of the labels.
CANDIDATES: dict[str, dict[str, Any]] = {
    "neighbourhoods": {**_NEIGHBOURHOODS, "adapt_steps": 0},
    "start": {"steps": 0, "adapt_steps": 0},
    "adapted": _NEIGHBOURHOODS,
    "ranked": {"adapt_steps": 0},
    "adapted and ranked": {"shadow_share": 0.5},
    "labels alone": {"alignment_weight": 0.0, "shadow_share": 0.5, "hidden_dim": CLASS_HIDDEN},
}
#: Settings of all trials: short fits, which rank the candidates as whole fits do. `labels alone` keeps its hidden
#: layer: tried as a linear map it ties with `adapted and ranked`, which loses .04 on clothing_images.
TRIAL = {
    "steps": 50,
    "batch_size": 64,
    "memory": 2048,
    "random_rows": 512,
    "top_k": 4,
    "narrow_hidden": 0.0,
}
#: Settings that a candidate or a trial may lower but never raise.
MOST = ("steps", "random_rows")

PAIRS_PER_QUERY = 16  # trained on per epoch; classes as labels have hundreds, which would crowd out other queries
MANY_QUERIES = 4800  # judged; with more, up to twice the steps and random rows of the memory improve the result
FEWEST_QUERIES = 20  # judged; with fewer, candidates are not compared
JUDGED_DOCUMENTS = 20_000  # documents that trials are scored on, in addition to the relevant ones
ENOUGH_QUERIES = 600  # held out; folds are added until there are as many
MOST_QUERIES = 1200  # of a dev split, or in all folds; more do not separate candidates better
FOLDS = 4  # parts that are held out in turn; half of them share no relevant document with what is trained on
HELD_OUT = 0.1  # share of the training queries that choose codes, or stop a rival early, without a dev split
MOST_HIDDEN = 2048  # width of the hidden layer of sizes up to NARROW_HIDDEN, at most
WIDEST = 1024  # numbers that a map is trained on; wider vectors are projected onto their leading axes first
LEFT_OUT = 1e-3  # share of the sum of squares that this projection may lose

CHOICES = {
    **FORMS,
    "order": ("grow", "shrink"),
    "start": ("principal", "identity"),
    "activation": ("relu", "gelu", "silu"),
}


@dataclass(frozen=True, kw_only=True)
class FitConfig(LossSettings):
    """Settings of a fit; names as in a ``--config`` file (JSON or YAML). Those of the loss come before these.

    Args:
        dims: Sizes to train; None for the full width and its halvings down to a sixteenth.
        candidates: Names in :data:`CANDIDATES` that held-out queries choose among, from safe to bold; one name leaves
            nothing to choose.
        order: ``grow`` (one nested map, all sizes in one pass) or ``shrink`` (as published, one map per size).
        start: ``principal`` axes, or the ``identity``, as published.
        hidden_dim: Width of each adapter's hidden layer; 0 for linear maps.
        narrow_hidden: With labels, in ``grow``, width of a hidden layer for sizes of at most :data:`NARROW_HIDDEN` of
            the vectors' width, as a multiple of that width; 0 for linear maps at every size.
        activation: Of the hidden layer.
        adapt_steps: Steps of the adapt stage; 0 for none.
        selection_ratio: Principal axes that ADS chooses from per axis that it keeps; 1 for no selection.
        selection_steps: Steps of the selection.
        steps: Steps of each other stage.
        batch_size: Pairs per step.
        learning_rate: Of the map.
        memory: Rows that S-XBM holds, at most; 0 for the batch's own documents alone.
        checkpoint_steps: Steps between checkpoints.
    """

    dims: tuple[int, ...] | None = None
    candidates: tuple[str, ...] = tuple(CANDIDATES)
    order: str = "grow"
    start: str = "principal"
    hidden_dim: int = 0
    narrow_hidden: float = 4.0
    activation: str = "relu"
    adapt_steps: int = 100
    selection_ratio: float = 1.0
    selection_steps: int = 120
    steps: int = 250
    batch_size: int = 128
    learning_rate: float = 1e-2
    memory: int = 8192
    checkpoint_steps: int = 125

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dims", "candidates"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.dims is not None:
            object.__setattr__(self, "dims", tuple(whole_number(dim, "dims") for dim in self.dims))
        self._check_numbers()
        unknown = [name for name in self.candidates if name not in CANDIDATES]
        if unknown or not self.candidates:
            raise DataError(
                f"`candidates` must be some of {', '.join(CANDIDATES)}; got {', '.join(unknown) or 'none'}."
            )

    def _check_numbers(self) -> None:
        for name in ("batch_size", "random_rows", "selection_steps", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise DataError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        for name in ("steps", "adapt_steps", "memory", "hidden_dim", "top_k", "stream_rows"):
            if getattr(self, name) < 0:
                raise DataError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if not 0 <= self.narrow_hidden < float("inf"):
            raise DataError(f"`narrow_hidden` must be 0 or more and finite, got {self.narrow_hidden}.")
        for name in ("learning_rate", "selection_ratio"):
            if not 0 < getattr(self, name) < float("inf"):
                raise DataError(f"`{name}` must be above 0 and finite, got {getattr(self, name)}.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise DataError(f"`{name}` must be {' or '.join(known)}, got {getattr(self, name)!r}.")

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> FitConfig:
        """Make settings from plain values; an error names what is unknown or of the wrong type."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - set(fields))
        if unknown:
            raise DataError(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(fields))}.")
        for name, value in settings.items():
            example = (192, 96) if name == "dims" else fields[name].default
            if not (name == "dims" and value is None) and not _is_of_the_kind(value, example):
                raise DataError(f"setting `{name}` must be of the kind of {_shown(example)}, got {value!r}.")
        return cls(**settings)

    def as_candidate(self, name: str, *, trial: bool = False) -> FitConfig:
        """Return the settings of a candidate, for a whole fit or for a trial."""
        changes = dict(CANDIDATES[name])
        for key, value in TRIAL.items() if trial else ():
            changes[key] = min(value, changes.get(key, getattr(self, key)))
        changes.update({key: min(changes[key], getattr(self, key)) for key in MOST if key in changes})
        return dataclasses.replace(self, **changes)

    @property
    def adapts(self) -> bool:
        """Whether an adapt stage is allowed.

        Other activations than ReLU depend on a vector's length, so moved vectors could not be folded into the map.
        """
        return self.adapt_steps > 0 and self.order == "grow" and self.activation == "relu"

    def for_queries(self, count: int) -> FitConfig:
        """Return the settings for this number of judged queries: many get more steps and random rows."""
        factor = min(2.0, max(1.0, count / MANY_QUERIES))
        return dataclasses.replace(
            self, steps=round(factor * self.steps), random_rows=round(factor * self.random_rows)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]


def _shown(example: object) -> str:
    return repr(list(example) if isinstance(example, tuple) else example)


def _is_of_the_kind(value: object, example: object) -> bool:
    """Return whether a value is of the example's kind; a whole number may stand for a float."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(example, tuple):
        return isinstance(value, list | tuple) and all(type(item) is type(example[0]) for item in value)
    if isinstance(example, float):
        return whole or isinstance(value, float)
    return whole if type(example) is int else isinstance(value, type(example))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read the settings of a JSON or YAML file, for :meth:`FitConfig.from_dict`; 1e-3 is a number in both."""
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes 1e-3 for a text, because it has no dot."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), "-+0123456789"
    )

    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is neither JSON nor YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path} must hold settings by name.")
    return settings


#: What ``--method`` names: settings that differ from the defaults. "truncate" and "pca" train nothing.
METHODS: dict[str, dict[str, Any]] = {
    "smec": {},
    "smec-published": {
        "candidates": ("ranked",),
        "order": "shrink",
        "start": "identity",
        "adapt_steps": 0,
        "batch_size": 256,
        "rank": "pairwise",
        "alignment": "l1",
        "alignment_weight": 0.5,
        "wide_weight": 1.0,
        "memory": 5000,
        "random_rows": 1,
        "top_k": 10,
        "narrow_hidden": 0.0,
    },
    "truncate": {},
    "pca": {},
}


def settings_of(method: str) -> dict[str, Any]:
    """Return the settings of a named method that differ from the defaults.

    Raises:
        DataError: If there is no such method.
    """
    if method not in METHODS:
        raise DataError(f"unknown method {method!r}; known are {', '.join(METHODS)}.")
    return METHODS[method]
