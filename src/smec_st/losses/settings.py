"""Settings of the training loss."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from smec_st.system.errors import DataError, check_seed

FORMS = {"rank": ("contrastive", "pairwise"), "alignment": ("kl", "l1")}


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Settings of :class:`~smec_st.losses.smec.SMECLoss`.

    Attributes:
        rank: Supervised term: ``contrastive`` (:func:`~smec_st.functional.contrastive_loss`) or ``pairwise``, the
            published :func:`~smec_st.functional.rank_loss`.
        alignment: Unsupervised term: ``kl`` (:func:`~smec_st.functional.alignment_kl`) or ``l1``, the published
            :func:`~smec_st.functional.alignment_l1` over the ``top_k`` nearest candidates.
        rank_weight: Weight of the supervised term.
        alignment_weight: Weight of the unsupervised term, the distillation weight. The KL form is multiplied by its
            temperature as well, so that its gradient does not depend on it.
        wide_weight: Weight of the same terms on a stage's width before ADS cuts it: 1 is the two-term reading of SMEC.
        source_weight: While a backbone trains, weight of the supervised term on its own output, at full width.
        prefix_gradient: Share of each size's gradient that reaches the columns of the smaller sizes. 0 freezes them
            for the larger sizes, which is SMRL; 1 trains all sizes on shared columns, which is MRL.
        tau: Temperature of the contrastive term, times a factor that each size learns.
        adapt_tau: The same in the adapt stage, where it is not learned.
        alignment_tau: Temperature of the KL term.
        narrow_alignment_tau: The same for sizes of a sixteenth of the width and less.
        sharpening: Without labels, full-width similarities count ``(D / d) ** sharpening`` times as much in the KL
            term of a size ``d``: a small size has room for the nearest neighbours only.
        top_k: Rows of the memory that are mined for each query.
        random_rows: Rows of the memory that are drawn at random per step.
        stream_rows: Corpus rows that enter a memory smaller than the corpus, per step.
        shadow_share: Share of both terms on queries that goes to counterfactual queries
            (:class:`~smec_st.losses.shadows.Shadows`).
        seed: Random seed.
    """

    rank: str = "contrastive"
    alignment: str = "kl"
    rank_weight: float = 1.0
    alignment_weight: float = 6.0
    wide_weight: float = 0.0
    source_weight: float = 1.0
    prefix_gradient: float = 0.0
    tau: float = 0.12
    adapt_tau: float = 0.05
    alignment_tau: float = 0.08
    narrow_alignment_tau: float = 0.05
    sharpening: float = 0.1
    top_k: int = 0
    random_rows: int = 2048
    stream_rows: int = 256
    shadow_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, known in FORMS.items():
            if getattr(self, name) not in known:
                raise DataError(f"`{name}` must be {' or '.join(known)}, got {getattr(self, name)!r}.")
        for name in ("tau", "adapt_tau", "alignment_tau", "narrow_alignment_tau"):
            if not 0 < getattr(self, name) < float("inf"):
                raise DataError(f"`{name}` must be above 0 and finite, got {getattr(self, name)}.")
        for name in ("rank_weight", "alignment_weight", "wide_weight", "source_weight", "sharpening"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise DataError(f"`{name}` must be 0 or more and finite, got {getattr(self, name)}.")
        if not 0 <= self.prefix_gradient <= 1:
            raise DataError(f"`prefix_gradient` must be in [0, 1], got {self.prefix_gradient}.")
        if not 0 <= self.shadow_share < 1:
            raise DataError(f"`shadow_share` must be in [0, 1), got {self.shadow_share}.")

    def of_loss(self) -> dict[str, Any]:
        """Return the fields above by name, without what a subclass adds; for model cards and run records."""
        return {field.name: getattr(self, field.name) for field in fields(LossSettings)}
