"""A small staged trainer over pairs of texts."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from smec_st import SequentialTrainingArguments
from smec_st.compressor.text import text_trainer
from smec_st.losses.settings import LossSettings
from tiny_models import WORDS


def make_pairs(count: int = 48) -> Dataset:
    rng = np.random.default_rng(0)
    words = [rng.choice(WORDS[:40], 3, replace=False) for _ in range(count)]
    noise = [rng.choice(WORDS[40:], 3) for _ in range(count)]
    return Dataset.from_dict(
        {
            "anchor": [" ".join(part[:2]) for part in words],
            "positive": [" ".join([*part, *other]) for part, other in zip(words, noise, strict=True)],
        }
    )


def make_trainer(backbone, folder, dataset=None, *, order="grow", loss=None, **settings):
    own = ("train_backbone", "held_out_share", "memory", "bytes")
    options = {name: settings.pop(name) for name in own if name in settings}
    args = SequentialTrainingArguments(
        output_dir=str(folder),
        **{
            "dims": [8, 4],
            "order": order,
            "start": "principal" if order == "grow" else "identity",
            "max_steps": 6,
            "selection_steps": 3,
            "per_device_train_batch_size": 8,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **settings,
        },
    )
    options = {"held_out_share": 0, **options}
    settings = LossSettings(**{"random_rows": 16, **(loss or {})})
    return text_trainer(backbone, args, dataset or make_pairs(), loss=settings, **options)
