"""The folder of a run, from which it can be continued: settings, finished stages and checkpoints.

::

    root/run.json                                  settings, by which a run is known again
    root/stage-00-grow-24-adapt/checkpoint-125/    of the running stage; complete once the loss's state is there
    root/stage-00-grow-24-adapt/final/             of a finished one: modules, report, and a backbone that trained
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME

from smec_st.data import DataError
from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, LiveBackbone, ResidualAdapter
from smec_st.stages import Stage, StageReport
from smec_st.system.files import write_json
from smec_st.training.callbacks import LOSS_STATE

RUN = "run.json"
FINAL = "final"
REPORT = "stage.json"
BACKBONE = "backbone.safetensors"


def check_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other settings: its finished stages would silently stay as they are.

    Raises:
        DataError: If a setting differs; it names all that do.
    """
    path = root / RUN
    if path.is_file():
        before = json.loads(path.read_text())
        other = sorted(name for name in settings if before.get(name) != settings[name])
        if other:
            raise DataError(
                f"{root} holds a run with other settings ({', '.join(other)}); continue it with its own, "
                "or choose another output_dir."
            )


def write_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings that the result of the run depends on."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / RUN, settings, indent=1)


def save_stage(
    folder: Path, model: SentenceTransformer, report: StageReport, backbone: Mapping[str, Tensor] | None
) -> None:
    """Write ``final/`` under another name, then rename it: a folder of that name is always whole.

    Args:
        folder: Of the stage; its checkpoints are removed.
        model: All modules, this stage's last.
        report: Of the stage.
        backbone: Weights of a backbone that trains, or trained, with the first stage.
    """
    draft = folder / f"{FINAL}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(str(draft), create_model_card=False)
    if backbone is not None:
        save_file(dict(backbone), draft / BACKBONE)
    (draft / REPORT).write_text(json.dumps(dataclasses.asdict(report), indent=1))
    os.replace(draft, folder / FINAL)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)


def finished_reports(root: Path, plan: Sequence[Stage]) -> list[StageReport]:
    """Read the reports of the stages that are finished, in the order of the plan, up to the first that is not."""
    reports: list[StageReport] = []
    for stage in plan:
        path = root / stage.name / FINAL / REPORT
        if not path.is_file():
            break
        reports.append(StageReport(**json.loads(path.read_text())))
    return reports


def load_modules(folder: Path) -> SentenceTransformer:
    """Load the modules of a finished stage or of a checkpoint, on the CPU."""
    ours = (EmbeddingInput, ResidualAdapter, AdaptiveDimensionSelection)
    classes: dict[str, Any] = {f"{cls.__module__}.{cls.__name__}": cls for cls in ours}
    classes[f"{LiveBackbone.__module__}.{LiveBackbone.__name__}"] = _Placeholder
    return SentenceTransformer._load_with_module_classes(str(folder), classes, device="cpu")


class _Placeholder(EmbeddingInput):
    """Where a checkpoint had a training backbone; its weights are in the trainer's state."""

    def __init__(self) -> None:
        super().__init__(1)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a stage."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{LOSS_STATE}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint is of the last step of its stage, by count or because the stage stopped early."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    return bool(state["global_step"] >= state["max_steps"] or control.get("should_training_stop"))
