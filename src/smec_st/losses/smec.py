"""The loss that a stage trains with: ranking where labels are, the full width's neighbourhoods everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import VectorTable
from smec_st.functional import (
    NEVER,
    alignment_kl,
    alignment_l1,
    contrastive_loss,
    rank_loss,
    reconstruction_l1,
    spread,
    unit,
)
from smec_st.losses.ranks import any_rank, gather_rows, mean_gradient, share_of_mean, total, world_size
from smec_st.losses.relevance import Relevance
from smec_st.losses.shadows import Shadows
from smec_st.memory import EMPTY, SelectableCrossBatchMemory
from smec_st.modules import ResidualAdapter
from smec_st.modules.weights import FINISHED

NARROW = 1 / 16  # of the width, and less
USUAL_SPREAD = 0.8  # and more; the temperatures were chosen on such vectors


class SMECLoss(nn.Module):
    """``L = L_rank + alpha L_align + beta L_rec`` over the batch and what S-XBM adds to it.

    Each batch row is compared with a pool of candidates: the batch's documents, the ``top_k`` remembered rows most
    similar to each query at full width, and ``random_rows`` others of the memory. All candidates are frozen vectors,
    mapped afresh by the current adapter.

    * ``L_rank`` needs labels: :func:`~smec_st.functional.contrastive_loss` or the published
      :func:`~smec_st.functional.rank_loss`.
    * ``L_align`` keeps the similarities of full width, of queries and documents to the pool: a KL divergence between
      neighbourhoods, or the published absolute difference over the top-k (SMEC; MA Eq. (2)). Without labels the KL
      form stretches full-width similarities where the candidates' :func:`~smec_st.functional.spread` is small, and
      narrow sizes keep sharper neighbourhoods.
    * ``L_rec`` keeps the result near its start (MA Eq. (3)); off by default.

    Labels are row ids, ``(B, 2)``: the anchor's, and its relevant document's or -1. With one column of features (no
    labels) only ``L_align`` and ``L_rec`` apply. Terms whose weight is 0 are not computed.

    Columns are frozen vectors (``sentence_embedding``) or, while a backbone trains, its inputs (token ids, pixels):
    then the memory holds the vectors that batches pushed, and ``source_weight`` ranks at full width as well.

    In a distributed run each rank compares its rows with the documents, mined and random rows of all, so that ``n``
    ranks train as one process would with a batch ``n`` times as large.

    Args:
        model: Starts with :class:`~smec_st.modules.EmbeddingInput`; must give ``sentence_embedding``.
        table: Frozen vectors by row id; feeds the memory. Without it the memory holds what batches push.
        relevance: Judgements; None to train without labels.
        memory: S-XBM; None to use the batch alone.
        rank: Form of ``L_rank``.
        alignment: Form of ``L_align``.
        rank_weight: Weight of ``L_rank``.
        alignment_weight: ``alpha``; the KL form is multiplied by its temperature as well.
        reconstruction_weight: ``beta``.
        wide_weight: Weight of the same terms on the stage's width before selection: 1 is the two-term reading of SMEC.
        source_weight: While a backbone trains, weight of ``L_rank`` on its own output, at full width.
        tau: Temperature of the contrastive loss, times a learned factor that starts each stage at 1.
        alignment_tau: Temperature of the KL form.
        narrow_alignment_tau: The same for sizes of a sixteenth of the width and less, where only the nearest can be
            kept.
        sharpening: Without labels, full-width similarities count for ``(D / d) ** sharpening`` times as much in the KL
            form of a size ``d``.
        top_k: Remembered rows mined per query.
        random_rows: Remembered rows drawn at random per step.
        stream_rows: Corpus rows pushed per step, when the memory is smaller than the corpus.
        shadow_share: Share of ``L_rank`` and ``L_align`` on queries that goes to shadows of them
            (:class:`~smec_st.losses.shadows.Shadows`), each asking for the document that it stands by alone.
        seed: Seeds the order in which the corpus passes through the memory, and the random rows.
    """

    citation = (
        "@inproceedings{zhang2025smec, title={SMEC: Rethinking Matryoshka Representation Learning for Retrieval "
        "Embedding Compression}, author={Zhang and Chen and Liu and Zheng}, booktitle={EMNLP}, year={2025}}"
    )

    def __init__(
        self,
        model: nn.Module,
        table: VectorTable | None = None,
        relevance: Relevance | None = None,
        memory: SelectableCrossBatchMemory | None = None,
        *,
        rank: Literal["contrastive", "pairwise"] = "contrastive",
        alignment: Literal["kl", "l1"] = "kl",
        rank_weight: float = 1.0,
        alignment_weight: float = 6.0,
        reconstruction_weight: float = 0.0,
        wide_weight: float = 0.0,
        source_weight: float = 1.0,
        tau: float = 0.12,
        alignment_tau: float = 0.08,
        narrow_alignment_tau: float = 0.05,
        sharpening: float = 0.1,
        top_k: int = 10,
        random_rows: int = 4096,
        stream_rows: int = 256,
        shadow_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rank not in ("contrastive", "pairwise") or alignment not in ("kl", "l1"):
            raise ValueError(f"`rank` is contrastive or pairwise, `alignment` kl or l1; got {rank!r}, {alignment!r}.")
        if min(tau, alignment_tau, narrow_alignment_tau) <= 0:
            raise ValueError(f"Temperatures must be above 0, got {tau}, {alignment_tau} and {narrow_alignment_tau}.")
        if relevance is None and alignment_weight == 0:
            raise ValueError("Without labels `alignment_weight` must be above 0: nothing else would train.")
        self.model = model  # the trainer collects the trainable weights under this name
        self.table = table
        self.relevance = relevance
        self.memory = memory
        self.rank, self.alignment = rank, alignment
        self.rank_weight, self.alignment_weight = rank_weight, alignment_weight
        self.reconstruction_weight, self.wide_weight = reconstruction_weight, wide_weight
        self.source_weight = source_weight
        self.tau, self.alignment_tau, self.narrow_alignment_tau = tau, alignment_tau, narrow_alignment_tau
        self.sharpening = sharpening
        self.top_k, self.random_rows, self.stream_rows, self.seed = top_k, random_rows, stream_rows, seed
        self.shadow_share = shadow_share
        self._shadow_of = Shadows(table, relevance, seed)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.log_scale.register_hook(mean_gradient)  # DDP wraps the model, not the loss
        self._step = (0, 0)
        self._is_live = False
        self._share = 1.0
        self._order: tuple[int, Tensor] | None = None
        self._finished: tuple[nn.Module, ...] = ()

    # -- what the trainer calls ---------------------------------------------------------------------------------------

    def begin_stage(
        self,
        stage: int,
        adapter: ResidualAdapter | None = None,
        share: float = 1.0,
        live: bool = False,
        finished: Sequence[nn.Module] = (),
    ) -> None:
        """Reset the learned temperature and fill the memory from the corpus, in an order that depends on the stage.

        Args:
            stage: Index of the stage.
            adapter: What it trains.
            share: The size it delivers, as a share of the full width.
            live: Whether it trains the backbone too: then the memory holds what batches push.
            finished: The modules of the stages before it. What they give is remembered where they have a hidden
                layer; else it costs next to nothing.
        """
        costly = any(isinstance(module, ResidualAdapter) and module.hidden is not None for module in finished)
        self._finished = tuple(finished) if costly else ()
        self._is_live, self._share = live, share
        with torch.no_grad():
            self.log_scale.zero_()
        if adapter is not None:
            adapter.exposes_start = self.reconstruction_weight > 0
        if self.memory is not None:
            self.memory.clear(self._columns(self.memory.vectors[:0]).shape[1] if self._finished else 0)
            if self.table is not None and not live:
                rows = self._corpus_order(stage)[: self.memory.capacity]
                self._push(self.table[rows], rows)

    def begin_step(self, stage: int, step: int) -> None:
        """Move the corpus on through the memory. Depends on (seed, stage, step) alone, so every rank does the same."""
        self._step = (stage, step)
        if self.memory is None or self.table is None or self._is_live:
            return
        if self.memory.capacity >= self.table.corpus_size:
            return
        order = self._corpus_order(stage)
        start = self.memory.capacity + step * self.stream_rows
        rows = order[(start + torch.arange(min(self.stream_rows, self.memory.capacity))) % len(order)]
        self._push(self.table[rows], rows)

    def training_state(self) -> dict[str, Tensor]:
        """Everything of the loss that a checkpoint of the model lacks."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`training_state`; every entry must be there."""
        missing = set(self.training_state()) - set(state)
        if missing:
            raise ValueError(f"The saved training state lacks {sorted(missing)}.")
        self.load_state_dict(state, strict=False)

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        names = (
            "rank", "alignment", "rank_weight", "alignment_weight", "reconstruction_weight", "wide_weight",
            "source_weight", "tau", "alignment_tau", "narrow_alignment_tau", "sharpening", "top_k", "random_rows",
            "stream_rows", "shadow_share", "seed",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def diagnostics(self) -> dict[str, float]:
        """For the log: temperature of the contrastive loss, and share of the memory that is filled."""
        found = {"temperature": self.tau * float(self.log_scale.detach().exp())}
        if self.memory is not None:
            found["memory_fill"] = len(self.memory) / self.memory.capacity
        return found

    # -- the loss -----------------------------------------------------------------------------------------------------

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms by name; the trainer sums and logs them.

        Args:
            sentence_features: Anchors, and with labels their relevant documents: ``sentence_embedding`` ``(B, D)``
                each, or what the model's backbone takes.
            labels: Row ids of both, ``(B, 2)`` int64; -1 for "none".
        """
        columns = [self._source(column) for column in sentence_features]
        anchors, anchor_ids = columns[0], labels[:, 0]
        own_documents = self._own(anchor_ids)
        has_documents = len(columns) > 1
        with torch.autocast(device_type=anchors.device.type, enabled=False):
            pool, pool_ids, own, teacher, slots = self._pool(anchors, anchor_ids, columns[1:], labels[:, 1])
            is_query = own_documents < 0
            near = own[is_query] if has_documents and self.relevance is not None else None
            shadows, stood_by = self._shadows(anchors[is_query], anchor_ids[is_query], pool, near)
            known = self._known(anchors, pool, slots, shadows)
        features = self.model({"sentence_embedding": torch.cat([anchors, pool, shadows]), **known})
        with torch.autocast(device_type=anchors.device.type, enabled=False):
            views = {"": (features["sentence_embedding"].float(), 1.0)}
            if self.wide_weight > 0:
                views["wide_"] = (features["candidate_embedding"].float(), self.wide_weight)
            if self._is_live and self.source_weight > 0:
                views["source_"] = (torch.cat([anchors, pool, shadows]), self.source_weight)
            terms: dict[str, Tensor] = {}
            for name, (embedding, weight) in views.items():
                mapped, small_pool, small_shadows = unit(embedding).split([len(anchors), len(pool), len(shadows)])
                student = mapped @ small_pool.T
                if self.relevance is not None and self.rank_weight > 0 and has_documents:
                    grades = self.relevance(anchor_ids, pool_ids)
                    possible = student.masked_fill(pool_ids == own_documents.unsqueeze(1), NEVER)
                    rank = self._rank(possible, grades)
                    if self._casts_shadows and name != "source_":
                        there = torch.zeros(len(shadows), len(pool), device=pool.device)
                        there.scatter_(1, stood_by.unsqueeze(1), 1.0)
                        moved = self._rank(small_shadows @ small_pool.T, there)
                        rank = (1 - self.shadow_share) * rank + self.shadow_share * moved
                    terms[f"{name}rank"] = weight * self.rank_weight * rank
                if self.alignment_weight > 0 and name != "source_":
                    sharp = self._sharpness(pool)
                    drift = self._alignment(student, sharp * teacher, own_documents, pool_ids)
                    if self._casts_shadows:
                        nobody = anchor_ids.new_full((len(shadows),), -1)
                        seen, whole = small_shadows @ small_pool.T, sharp * shadows @ pool.T
                        moved = self._alignment(seen, whole, nobody, pool_ids)
                        drift = (1 - self.shadow_share) * drift + self.shadow_share * moved
                    if has_documents:
                        frozen = pool.detach()
                        drift = drift + self._alignment(
                            small_pool[own] @ small_pool.T, sharp * frozen[own] @ frozen.T, pool_ids[own], pool_ids
                        )
                    terms[f"{name}alignment"] = weight * self.alignment_weight * drift
            if self.reconstruction_weight > 0:
                terms["reconstruction"] = self.reconstruction_weight * self._reconstruction(
                    features, len(anchors), len(anchors) + len(pool)
                )
        if self.training and self.memory is not None and (self.table is None or self._is_live):
            self._remember(columns, labels)
        return terms

    def _source(self, column: dict[str, Tensor]) -> Tensor:
        """A column's full-width vectors, ``(B, D)`` float32, unit norm: as they are, or through the backbone."""
        if column.keys() == {"sentence_embedding"}:
            return column["sentence_embedding"]
        return unit(self.model(column)["source_embedding"].float())

    def _rank(self, student: Tensor, grades: Tensor) -> Tensor:
        if self.rank == "contrastive":
            return contrastive_loss(student, grades, self.tau * self.log_scale.exp(), share_of_mean)
        pairs, rank = gather_rows((grades > 0).sum().view(1))
        position = int(pairs[:rank].sum()), int(pairs.sum())
        return rank_loss(student, grades, mean=share_of_mean, position=position)

    def _own(self, row_ids: Tensor) -> Tensor:
        """The document that each row is itself, or -1. ``(B,) -> (B,)``."""
        return row_ids if self.table is None else self.table.own(row_ids.cpu()).to(row_ids.device)

    @torch.no_grad()
    def _sharpness(self, pool: Tensor) -> float | Tensor:
        """What full-width similarities to the pool count for in the KL form; 1 with labels, and in the other form.

        Where all vectors lie in a narrow cone, similarities are alike and their differences count for more. A narrow
        size has room for the nearest alone: the narrower, the sharper the neighbourhoods that it is to keep. With
        labels, these say which of the nearest matter.
        """
        if self.relevance is not None or self.alignment != "kl":
            return 1.0
        return float(self._share**-self.sharpening) / (spread(pool) / USUAL_SPREAD).clamp(max=1.0)

    def _alignment(self, student: Tensor, teacher: Tensor, own_documents: Tensor, pool_ids: Tensor) -> Tensor:
        """``L_align`` of rows against the pool, each row's similarity to itself left out."""
        others = pool_ids != own_documents.unsqueeze(1) if torch.isin(own_documents, pool_ids).any() else None
        if self.alignment == "kl":
            tau = self.narrow_alignment_tau if self._share <= NARROW else self.alignment_tau
            # Times tau, so that the pull does not depend on it.
            return tau * alignment_kl(student, teacher, tau, others, share_of_mean)
        if others is None:
            others = torch.ones_like(teacher, dtype=torch.bool)
        k = min(self.top_k, teacher.shape[1])
        nearest = torch.zeros_like(others)
        nearest.scatter_(1, teacher.masked_fill(~others, float("-inf")).topk(k, dim=1).indices, True)
        return alignment_l1(student, teacher, nearest & others, share_of_mean)

    def _reconstruction(self, features: dict[str, Tensor], anchors: int, end: int) -> Tensor:
        """``L_rec`` of anchors and pool; the pool is the same on every rank, the anchors are not."""
        start, result = features["start_embedding"][:end].float(), features["candidate_embedding"][:end].float()
        if world_size() == 1:
            return reconstruction_l1(start, result)
        change = (result - start).abs()
        count = total(torch.tensor(anchors, device=start.device)) + len(start) - anchors
        return (world_size() * change[:anchors].sum() + change[anchors:].sum()) / (count * start.shape[1])

    # -- candidates ---------------------------------------------------------------------------------------------------

    def _pool(
        self, anchors: Tensor, anchor_ids: Tensor, documents: list[Tensor], document_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the batch is compared with.

        Returns:
            Vectors ``(C, D)``, distinct row ids ``(C,)``, where each batch row's own document stands ``(B,)``, the
            full-width similarity of anchors and vectors ``(B, C)``, and the slots of the memory that the last of the
            vectors come from.
        """
        if documents:
            gathered, first = gather_rows(document_ids)
            ids, place = torch.unique(gathered, return_inverse=True)
            own = place[first : first + len(document_ids)]
            vectors = self._document_vectors(ids, place, documents[0])
        else:
            ids, own, vectors = document_ids[:0], document_ids[:0], anchors[:0]
        slots = ids[:0]
        with torch.no_grad():
            similarity = anchors @ vectors.T
            if self.memory is not None:
                slots, remembered = self._chosen_slots(anchors, anchor_ids, ids)
                ids = torch.cat([ids, self.memory.row_ids[slots]])
                similarity = torch.cat([similarity, remembered], dim=1)
        if self.memory is not None:
            vectors = torch.cat([vectors, self.memory.vectors[slots]])
        return vectors, ids, own, similarity, slots

    @torch.no_grad()
    def _known(self, anchors: Tensor, pool: Tensor, slots: Tensor, shadows: Tensor) -> dict[str, Tensor]:
        """What finished stages make of all these rows; of those that are remembered, as it is remembered."""
        if not self._finished:
            return {}
        fresh = len(pool) - len(slots) if self.memory is not None else len(pool)
        parts = self._columns(torch.cat([anchors, pool[:fresh], shadows])).split([len(anchors), fresh, len(shadows)])
        remembered = parts[0][:0] if self.memory is None else self.memory.finished[slots]
        return {FINISHED: torch.cat([parts[0], parts[1], remembered, parts[2]])}

    @torch.no_grad()
    def _columns(self, vectors: Tensor) -> Tensor:
        """What finished stages make of full-width vectors, ``(n, D) -> (n, have)``."""
        features = {"sentence_embedding": vectors}
        for module in self._finished:
            features = module(features)
        return features["sentence_embedding"].float()

    def _push(self, vectors: Tensor, row_ids: Tensor) -> None:
        assert self.memory is not None
        vectors = vectors.to(self.memory.vectors)
        self.memory.push(vectors, row_ids, self._columns(vectors) if self._finished else None)

    @property
    def _casts_shadows(self) -> bool:
        return self.shadow_share > 0 and self._shadow_of.are_cast

    def _shadows(
        self, queries: Tensor, ids: Tensor, pool: Tensor, near: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not self._casts_shadows or len(pool) == 0:
            return queries[:0].detach(), ids[:0]
        return self._shadow_of(queries, ids, pool, near, self._step)

    def _document_vectors(self, ids: Tensor, place: Tensor, documents: Tensor) -> Tensor:
        """Vectors of all ranks' documents, each once, ``(C, D)``; looked up where they are frozen, else gathered."""
        if self.table is not None and not self._is_live and world_size() > 1:
            return self.table[ids.cpu()].to(documents)
        gathered, _ = gather_rows(documents, with_grad=self._is_live and torch.is_grad_enabled())
        first = torch.full_like(ids, len(gathered))
        first.scatter_reduce_(0, place, torch.arange(len(gathered), device=ids.device), reduce="amin")
        return gathered[first]

    def _chosen_slots(self, anchors: Tensor, anchor_ids: Tensor, batch_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Slots that join this batch, rising, with no row that it already holds; and their similarity ``(B, S)``."""
        assert self.memory is not None
        row_ids = self.memory.row_ids
        free = (row_ids != EMPTY) & ~torch.isin(row_ids, batch_ids)
        if int(free.sum()) <= self.random_rows:
            slots = free.nonzero().squeeze(1)
            return slots, anchors @ self.memory.vectors[slots].T
        stage, step = self._step
        rng = np.random.default_rng([self.seed, stage, step, 1])
        chosen = torch.zeros_like(free)
        chosen[torch.from_numpy(rng.permutation(self.memory.capacity)[: self.random_rows]).to(free.device)] = True
        if self.top_k == 0:
            slots = (chosen & free).nonzero().squeeze(1)
            return slots, anchors @ self.memory.vectors[slots].T
        similarity = anchors @ self.memory.vectors.T  # (B, M)
        banned = (row_ids == self._own(anchor_ids).unsqueeze(1)) | ~free
        if self.relevance is not None:
            filled = free.nonzero().squeeze(1)
            banned[:, filled] |= self.relevance(anchor_ids, row_ids[filled]) > 0
        chosen |= any_rank(self.memory.mine(similarity, self.top_k, banned).any(dim=0))
        slots = (chosen & free).nonzero().squeeze(1)
        return slots, similarity[:, slots]

    def _corpus_order(self, stage: int) -> Tensor:
        assert self.table is not None
        if self._order is None or self._order[0] != stage:
            rng = np.random.default_rng([self.seed, stage, 0])
            self._order = stage, torch.from_numpy(rng.permutation(self.table.corpus_size))
        return self._order[1]

    @torch.no_grad()
    def _remember(self, columns: list[Tensor], labels: Tensor) -> None:
        """Push the batch's documents (its anchors when there are none), gathered over all ranks."""
        assert self.memory is not None
        vectors, ids = (columns[1], labels[:, 1]) if len(columns) > 1 else (columns[0], labels[:, 0])
        self._push(gather_rows(vectors.detach())[0], gather_rows(ids)[0])
