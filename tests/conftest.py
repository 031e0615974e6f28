"""Offline and one thread, and the fixtures that tests of several folders use."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of FAISS and child processes
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of numpy
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import logging

import numpy as np
import pytest
import torch

import smec_st.fitting.recipe  # noqa: F401
import smec_st.training.trainer  # noqa: F401
from collection_world import write_collection
from smec_st.system import errors

torch.set_num_threads(1)
gc.collect()
gc.freeze()  # each stage collects twice: half a second each time over all that the libraries imported above hold


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cut_off(monkeypatch):
    """Call with a number: the end of the stage of that number, over all runs, is an interrupt. Returns their names."""
    from smec_st.training.trainer import SequentialTrainer

    def at(number):
        end, ended = SequentialTrainer._end_stage, []

        def counted(self, *arguments):
            ended.append(arguments[0].name)
            if len(ended) == number:
                raise KeyboardInterrupt
            return end(self, *arguments)

        monkeypatch.setattr(SequentialTrainer, "_end_stage", counted)
        return ended

    return at


@pytest.fixture
def small_collection(tmp_path):
    """:func:`write_collection` into this test's folder."""
    return lambda name="toy", **sizes: write_collection(tmp_path / name, **sizes)


@pytest.fixture
def told(caplog):
    """Return what was logged in this test, oldest first."""
    errors.tell.cache_clear()
    caplog.set_level(logging.WARNING, logger="smec_st")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "smec_st"]
