"""Save and load modules with weights: ``config.json`` and ``model.safetensors``, nothing else."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from sentence_transformers.base.modules import Module
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

FINISHED = "finished_embedding"  # the output of all finished modules, where it was computed before


class WeightedModule(Module):
    """A module that owns weights. Only safetensors are loaded, never pickle.

    Attributes:
        is_finished: Whether a later stage trains. Then features may hold the output of all finished modules, under
            :data:`FINISHED`, and this module has nothing to compute.
    """

    is_finished = False

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=True)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Build from ``config.json`` and fill in ``model.safetensors``, from a folder or the Hub."""
        where: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        config = cls.load_config(model_name_or_path, **where)
        if cls.load_file_path(model_name_or_path, filename="model.safetensors", **where) is None:
            raise ValueError(f"{os.path.join(str(model_name_or_path), subfolder)} holds no model.safetensors.")
        module: Self = cls.load_torch_weights(model_name_or_path, model=cls(**config), **where)
        return module

    def is_known(self, features: dict[str, Tensor]) -> bool:
        """Whether the output of this module was computed before and is in ``features``."""
        return self.is_finished and FINISHED in features

    def __repr__(self) -> str:
        return f"{type(self).__name__}({json.dumps(self.get_config_dict())})"
