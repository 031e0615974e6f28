"""The work of the child processes in the tests of faults."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

from search_world import clustered, compressor
from smec_st.data import DataError
from smec_st.search import FunnelIndex, build

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "faiss", "smec_st.fitting.recipe", "smec_st.search", "pymilvus"])


def start(work, *arguments):
    """Start a process that runs ``work(pipe, *arguments)``, and return it with our end of the pipe."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def add(pipe, uri):
    """Add batches of 25 rows, and report after each."""
    corpus = clustered(4000)
    with FunnelIndex.create(uri, compressor(), head="flat", dims=(4,)) as index:
        for first in range(0, 4000, 25):
            index.add(corpus[first : first + 25], range(first, first + 25))
            pipe.send(first + 25)


def build_and_die(pipe, uri, stage, done):
    """Build in batches of 40 rows, and kill this process at a stage."""
    build.ADD_ROWS = 40

    def kill_at_stage(current, rows, total):
        if current == stage and rows >= done:
            os.kill(os.getpid(), signal.SIGKILL)

    build.build(uri, compressor(), clustered(4000)[:120], build.BuildOptions(dims=(4,)), progress=kill_at_stage)


def hold(pipe, uri):
    """Write some rows, and hold the write lock."""
    index = FunnelIndex.open(uri)
    index.add(clustered(4000)[50:60], range(50, 60))
    pipe.send("written")
    time.sleep(60)


def open_only(pipe, uri):
    """Open the index, and report the result."""
    try:
        FunnelIndex.open(uri).close()
        pipe.send("opened")
    except DataError as error:
        pipe.send(str(error))
