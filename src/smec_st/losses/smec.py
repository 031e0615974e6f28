"""The training loss: ranking where there are labels, the neighbourhoods of full width everywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import Table
from smec_st.functional import NEVER, alignment_l1, narrowness, nested_cosines, rank_loss, unit
from smec_st.losses.memory import SelectableCrossBatchMemory
from smec_st.losses.nested import Comparison, nested_loss
from smec_st.losses.pool import CandidatePool
from smec_st.losses.ranks import gather_rows, mean_gradient, share_of_mean
from smec_st.losses.relevance import Relevance
from smec_st.losses.settings import LossSettings
from smec_st.losses.shadows import Shadows
from smec_st.modules.weights import FINISHED
from smec_st.stages import Stage

NARROW = 1 / 16  # of the width: sizes up to here have a temperature of their own
ROUNDED = "rounded_"  # how terms of documents as they are stored are named


@dataclass(frozen=True)
class Step:
    """What one step compares: ``n`` rows, the batch's queries and then documents, with a pool of ``C`` candidates.

    Attributes:
        queries: Number of rows that are queries.
        teacher: Full-width similarity of all rows to the pool, ``(n, C)``.
        same: Row and candidate where both are the same item, ``(s,)`` each.
        grades: Relevance of the pool to each query, ``(queries, C)``; None without labels.
        width: Full width ``D``.
        stretch: Factor applied to full-width similarities before the softmax.
        narrowness: Factor of the KL temperature where the candidates are fixed (bridges).
    """

    queries: int
    teacher: Tensor
    same: tuple[Tensor, Tensor]
    grades: Tensor | None
    width: int
    stretch: float
    narrowness: float = 1.0


@dataclass(frozen=True)
class Target:
    """A frozen space that anchors are mapped into, where candidates stay as they are: what a bridge trains towards.

    Attributes:
        candidates: Vectors in that space by row id, ``(rows, d)``.
        teacher: Vectors whose cosines are the neighbourhoods to keep, by the same row ids, of any width.
    """

    candidates: Table
    teacher: Table


class Rounding(Protocol):
    """Rows as they are stored, with a gradient; see :class:`smec_st.quantization.rounding.Rounding`."""

    dim: int

    def __call__(self, rows: Tensor) -> Tensor:
        """``(n, at least dim) -> (n, dim)``."""


class SMECLoss(nn.Module):
    """``L = L_rank + alpha L_align`` over the batch and what S-XBM adds to it, summed over the sizes of a stage.

    Each row is compared with a pool of candidates: the batch's documents, the ``top_k`` memory rows most similar to
    each query at full width, and ``random_rows`` others of the memory. Candidates are frozen vectors, mapped by the
    current adapter at each step. The pool, its full-width similarities and its judgements are made once per step and
    serve all sizes (:func:`~smec_st.losses.nested.nested_loss`).

    * ``L_rank`` needs labels and ranks the pool for each query.
    * ``L_align`` keeps the similarities of full width: of each query to the pool, and of as many random documents of
      the pool (SMEC; MA Eq. (2)). Without labels the KL form stretches full-width similarities where the candidates'
      :func:`~smec_st.functional.spread` is small, as in a narrow cone their differences count for more, and narrow
      sizes keep sharper neighbourhoods.

    In an ``adapt`` stage only ``L_rank`` applies, over the batch's documents.

    Labels are row ids, ``(B, 2)``: the anchor's, and its document's or -1. Terms whose weight is 0 are not computed.

    Columns are frozen vectors (``sentence_embedding``) or, while a backbone trains, its inputs (token ids, pixels):
    then the memory holds the vectors that batches pushed, and ``source_weight`` ranks at full width as well.

    In a distributed run each rank compares its rows with the documents, mined and random rows of all, so that ``n``
    ranks train as one process would with a batch ``n`` times as large.

    With a ``target`` only queries are mapped. Candidates are fixed vectors of the target space, and the target's
    teacher says which neighbourhoods to keep. Counterfactual queries are not available then.

    With a ``rounding`` both terms are added a second time for the rounded candidates, while the compared rows stay
    floats; gradients reach all columns of the stored size.

    Args:
        model: Starts with :class:`~smec_st.modules.EmbeddingInput`; must give ``sentence_embedding``.
        table: Frozen vectors by row id; feeds the memory. Without it the memory holds what batches push.
        relevance: Judgements; None to train without labels.
        memory: S-XBM; None to use the batch alone.
        settings: Weights, forms and temperatures.
        target: The frozen space that anchors are mapped into; None where one map moves both sides.
    """

    citation = (
        "@inproceedings{zhang2025smec, title={SMEC: Rethinking Matryoshka Representation Learning for Retrieval "
        "Embedding Compression}, author={Zhang and Chen and Liu and Zheng}, booktitle={EMNLP}, year={2025}}"
    )

    def __init__(
        self,
        model: nn.Module,
        table: Table | None = None,
        relevance: Relevance | None = None,
        memory: SelectableCrossBatchMemory | None = None,
        settings: LossSettings | None = None,
        target: Target | None = None,
    ) -> None:
        super().__init__()
        settings = settings or LossSettings()
        if target is not None and (memory is None or settings.shadow_share > 0 or settings.wide_weight > 0):
            raise ValueError("A loss with a `target` needs a memory, and neither `shadow_share` nor `wide_weight`.")
        if relevance is None and settings.alignment_weight == 0:
            raise ValueError("Without labels `alignment_weight` must be above 0: nothing else would train.")
        self.model = model  # the trainer collects the trainable weights under this name
        self.relevance = relevance
        self.memory = memory
        self.target = target
        self.rounding: Rounding | None = None  # of the pool; the trainer sets it for each stage
        self.settings = self._active = settings
        self._sizes: tuple[int, ...] = ()
        self._step = (0, 0)
        self._is_live = self._is_prepared = False
        self.read_from(table)
        self._new_scales(1)

    # -- what the trainer calls ---------------------------------------------------------------------------------------

    def read_from(self, table: Table | None) -> None:
        """Train the later stages on another table of the same rows."""
        searched = table if self.target is None else self.target.candidates
        self._pool = CandidatePool(searched, self.relevance, self.memory, self.settings)
        self._shadows = Shadows(table, self.relevance, self.settings.seed)

    def begin_stage(self, stage: Stage, live: bool = False, prepared: bool = False) -> None:
        """Reset the learned temperatures and the memory.

        Args:
            stage: The stage that begins.
            live: Whether it trains the backbone too: then the memory holds what batches push.
            prepared: Whether the table already holds the outputs of the model's finished modules.
        """
        is_adapt = stage.phase == "adapt"
        self._is_live, self._is_prepared, self._sizes = live, prepared, stage.sizes
        self._active = self.settings
        if is_adapt:
            self._active = dataclasses.replace(
                self.settings, rank="contrastive", rank_weight=1.0, tau=self.settings.adapt_tau,
                alignment_weight=0.0, wide_weight=0.0, shadow_share=0.0,
            )  # fmt: skip
        self._new_scales(len(stage.sizes))
        self.log_scale.requires_grad_(not is_adapt)
        self._pool.begin_stage(stage.index, live, in_use=not is_adapt)

    def begin_step(self, stage: int, step: int) -> None:
        """Push the next rows of the corpus. Depends on (seed, stage, step) alone, so every rank does the same."""
        self._step = (stage, step)
        self._pool.begin_step(stage, step)

    @property
    def ranks(self) -> bool:
        """Whether the running stage learns from judgements."""
        return self.relevance is not None and self._active.rank_weight > 0

    @property
    def will_rank(self) -> bool:
        """Whether the stages after an adapt stage, which always learns from judgements, learn from them."""
        return self.relevance is not None and self.settings.rank_weight > 0

    def _new_scales(self, sizes: int) -> None:
        """One learned factor of the temperature per size, 1 at first."""
        device = next(self.model.parameters(), torch.zeros(())).device
        self.log_scale = nn.Parameter(torch.zeros(sizes, device=device))
        self.log_scale.register_hook(mean_gradient)  # DDP wraps the model, not the loss

    def training_state(self) -> dict[str, Tensor]:
        """Return the state of the loss, which a checkpoint of the model lacks."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`training_state`.

        Raises:
            ValueError: If an entry is missing.
        """
        missing = set(self.training_state()) - set(state)
        if missing:
            raise ValueError(f"The saved training state lacks {sorted(missing)}.")
        self.load_state_dict(state, strict=False)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return self.settings.of_loss()

    def diagnostics(self) -> dict[str, float]:
        """Return temperature at the largest size, and the filled share of the memory, for the log."""
        found = {"temperature": self._active.tau * float(self.log_scale.detach()[-1].exp())}
        if self.memory is not None:
            found["memory_fill"] = len(self.memory) / self.memory.capacity
        return found

    # -- the loss -----------------------------------------------------------------------------------------------------

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms by name; the trainer sums and logs them.

        Args:
            sentence_features: Anchors, and their documents where the dataset has that column: ``sentence_embedding``
                ``(B, D)`` each, or what the model's backbone takes.
            labels: Row ids of both, ``(B, 2)`` int64; -1 for "none".
        """
        columns = [self._source(column) for column in sentence_features]
        anchors, anchor_ids = columns[0], labels[:, 0]
        with torch.autocast(device_type=anchors.device.type, enabled=False):
            document = columns[1] if len(columns) > 1 else None
            seeking = anchors if self.target is None else self.target.candidates[anchor_ids.cpu()].to(anchors)
            pool, pool_ids, own = self._pool.candidates(seeking, anchor_ids, document, labels[:, 1])
            anchors, moved_to = self._with_shadows(anchors, anchor_ids, pool, None if document is None else own)
            documents = self._documents(len(pool), anchor_ids)
            step = self._step_of(anchors, anchor_ids, pool, pool_ids, documents, moved_to)
        rows = torch.cat([anchors, pool]) if self.target is None else anchors
        features = self.mapped(rows)
        terms: dict[str, Tensor] = {}
        if len(pool) == 0:  # the memory holds nothing yet
            terms["alignment"] = 0.0 * features["sentence_embedding"].sum()
        with torch.autocast(device_type=anchors.device.type, enabled=False):
            for name, embedding, weight, sizes in self._views(features, rows) if len(pool) else ():
                queries = embedding[: len(anchors)]
                candidates = embedding[len(anchors) :] if self.target is None else pool
                left = torch.cat([queries, candidates[documents]])
                right = self.rounding(candidates) if name == ROUNDED and self.rounding else candidates
                for term, value in self._compare(left[:, : right.shape[1]], right, sizes, step, name).items():
                    terms[name + term] = weight * value
        if self.training:
            self._pool.push_batch(columns, labels)
        return terms

    def mapped(self, rows: Tensor) -> dict[str, Tensor]:
        """What the model gives for rows that the table, or the backbone, gave: its features, by name."""
        known = {FINISHED: rows} if self._is_prepared else {}
        features: dict[str, Tensor] = self.model({"sentence_embedding": rows, **known})
        return features

    def _source(self, column: dict[str, Tensor]) -> Tensor:
        """Return a column's full-width vectors, ``(B, D)`` float32, unit norm; a live backbone encodes them."""
        if column.keys() == {"sentence_embedding"}:
            return column["sentence_embedding"]
        return unit(self.model(column)["source_embedding"].float())

    def _views(
        self, features: dict[str, Tensor], rows: Tensor
    ) -> Iterator[tuple[str, Tensor, float, tuple[int, ...]]]:
        """Yield what is compared: name, all rows mapped ``(n, d)``, weight, and the sizes within ``d``."""
        embedding = features["sentence_embedding"].float()
        yield "", embedding, 1.0, self._sizes or (embedding.shape[1],)
        if self.rounding is not None:
            yield ROUNDED, embedding, 1.0, (self.rounding.dim,)
        if self._active.wide_weight > 0:
            wide = features["candidate_embedding"].float()
            yield "wide_", wide, self._active.wide_weight, (wide.shape[1],)
        if self._is_live and self._active.source_weight > 0:
            yield "source_", rows, self._active.source_weight, (rows.shape[1],)

    def _compare(
        self, left: Tensor, right: Tensor, sizes: tuple[int, ...], step: Step, view: str
    ) -> dict[str, Tensor]:
        """Compute both terms of one view, summed over its sizes."""
        settings = self._active
        ranks = step.grades is not None
        aligns = settings.alignment_weight > 0 and view != "source_"
        want = Comparison(
            sizes=sizes,
            tau=settings.tau,
            ranked=step.queries,
            same=step.same,
            prefix_gradient=settings.prefix_gradient,
            **self._pairs(step, ranks and settings.rank == "contrastive"),
            **self._targets(step, sizes, aligns and settings.alignment == "kl"),
        )
        terms: dict[str, Tensor] = {}
        if len(want.pair_weights) or want.targets:
            scales = self.log_scale if view == "" else self.log_scale[-1:]
            total, _, alignment = nested_loss(left, right, scales, want)
            terms = {"rank": total - alignment, "alignment": alignment} if ranks else {"alignment": total}
            terms = {name: value for name, value in terms.items() if name == "rank" or aligns}
        published = (ranks and settings.rank == "pairwise", aligns and settings.alignment == "l1")
        for cosine in nested_cosines(left, right, sizes, settings.prefix_gradient) if any(published) else ():
            for name, is_on, term in zip(("rank", "alignment"), published, (_pairwise, self._l1), strict=True):
                if is_on:
                    terms[name] = terms.get(name, 0.0) + getattr(settings, f"{name}_weight") * term(cosine, step)
        return {name: terms[name] for name in ("rank", "alignment") if name in terms}

    def _pairs(self, step: Step, ranks: bool) -> dict[str, Any]:
        """Return relevant pairs of the contrastive term and their weights; the grades of a query share its weight."""
        if not ranks or step.grades is None:
            empty = step.same[0][:0]
            return {"pairs": (empty, empty), "pair_weights": step.teacher[:0, 0]}
        total = step.grades.sum(dim=1)
        rows, columns = step.grades.nonzero(as_tuple=True)
        weight = share_of_mean(total.new_tensor(self._active.rank_weight), (total > 0).sum())
        return {"pairs": (rows, columns), "pair_weights": weight * step.grades[rows, columns] / total[rows]}

    @torch.no_grad()
    def _targets(self, step: Step, sizes: tuple[int, ...], aligns: bool) -> dict[str, Any]:
        """Full-width neighbourhoods that the KL term keeps, by size."""
        settings, teacher = self._active, step.teacher
        found: dict[str, Any] = {"taus": [], "targets": [], "entropies": [], "row_weights": teacher[:, 0]}
        if not aligns:
            return found
        weight = teacher.new_tensor(settings.alignment_weight)
        counts = (step.queries, len(teacher) - step.queries)
        found["row_weights"] = torch.cat(
            [share_of_mean(weight, torch.tensor(n, device=weight.device)).expand(n) for n in counts]
        )
        made: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}
        for size in sizes:
            share = size / step.width
            tau = settings.narrow_alignment_tau if share <= NARROW else settings.alignment_tau
            sharp = step.stretch * (1.0 if self.ranks else share**-settings.sharpening)
            if (tau, sharp) not in made:
                logits = teacher * (sharp / tau)
                logits[step.same] = NEVER
                logs = logits.log_softmax(dim=1)
                target = logs.exp().mul_(found["row_weights"][:, None])
                made[tau, sharp] = target, torch.dot(target.view(-1), logs.view(-1))
            for name, value in zip(
                ("taus", "targets", "entropies"), (tau * step.narrowness, *made[tau, sharp]), strict=True
            ):
                found[name].append(value)
        return found

    def _l1(self, cosine: Tensor, step: Step) -> Tensor:
        """Compute the published alignment over the ``top_k`` candidates nearest to each query and document."""
        teacher = step.teacher.index_put(step.same, step.teacher.new_tensor(float("-inf")))
        near = torch.zeros_like(teacher, dtype=torch.bool)
        near.scatter_(1, teacher.topk(min(self._active.top_k, teacher.shape[1]), dim=1).indices, True)
        near[step.same] = False
        parts = (slice(step.queries), slice(step.queries, None))
        amounts = [alignment_l1(cosine[rows], step.teacher[rows], near[rows], share_of_mean) for rows in parts]
        return amounts[0] + amounts[1]

    # -- rows ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _step_of(
        self,
        anchors: Tensor,
        anchor_ids: Tensor,
        pool: Tensor,
        pool_ids: Tensor,
        documents: Tensor,
        moved_to: Tensor,
    ) -> Step:
        own = torch.cat([self._pool.own(anchor_ids), pool_ids[documents]])
        row, column = (own.unsqueeze(1) == pool_ids).nonzero(as_tuple=True)
        grades = None
        if self.relevance is not None and self.ranks:
            grades = self.relevance(anchor_ids, pool_ids)
            asked = row < len(anchors)
            grades[row[asked], column[asked]] = 0
            moved = (moved_to >= 0).nonzero().squeeze(1)
            grades[moved] = 0
            grades[moved, moved_to[moved]] = 1
        same, width = (row, column), anchors.shape[1]
        if self.target is not None:
            left, right = (self.target.teacher[ids.cpu()].to(pool) for ids in (anchor_ids, pool_ids))
            return Step(
                len(anchors), left @ right.T, same, grades, pool.shape[1], 1 / narrowness(right), narrowness(pool)
            )
        stretch = 1.0 if self.ranks else 1 / narrowness(pool)
        teacher = torch.cat([anchors, pool[documents]]) @ pool.T
        return Step(len(anchors), teacher, same, grades, width, stretch)

    def _documents(self, pool: int, anchor_ids: Tensor) -> Tensor:
        """Draw as many documents of the pool as there are anchors; their neighbourhoods are kept as well.

        Every rank draws the same ones and takes its part of them.
        """
        if self._active.alignment_weight == 0 or self.target is not None:
            return anchor_ids[:0]
        everyone, first = gather_rows(anchor_ids)
        drawn = np.random.default_rng([self.settings.seed, *self._step, 3]).permutation(pool)[: len(everyone)]
        part = [len(drawn) * edge // len(everyone) for edge in (first, first + len(anchor_ids))]
        return torch.from_numpy(drawn[part[0] : part[1]]).to(anchor_ids.device)

    def _with_shadows(self, queries: Tensor, ids: Tensor, pool: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Replace a share of the queries by counterfactual ones; return the candidates that they ask for, else -1."""
        share, none = self._active.shadow_share, torch.full_like(ids, -1)
        if share == 0 or self._is_live or len(pool) == 0 or not self._shadows.are_cast:
            return queries, none
        shadows, stood_by, chance = self._shadows(queries, ids, pool, own, self._step)
        is_moved = chance < share
        return torch.where(is_moved.unsqueeze(1), shadows, queries), torch.where(is_moved, stood_by, none)


def _pairwise(cosine: Tensor, step: Step) -> Tensor:
    """Compute the published ranking term, over the pairs of all ranks."""
    assert step.grades is not None
    pairs, first = gather_rows((step.grades > 0).sum().view(1))
    position = int(pairs[:first].sum()), int(pairs.sum())
    possible = cosine.index_put(step.same, cosine.new_tensor(NEVER))[: step.queries]
    return rank_loss(possible, step.grades, mean=share_of_mean, position=position)
