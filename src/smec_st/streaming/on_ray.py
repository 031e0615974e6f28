"""The same shards by Ray Data: each task opens the source itself, so the driver moves no vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import DataError
from smec_st.streaming.shards import Cutter, Shard, shard_name, write_shard

if TYPE_CHECKING:
    from smec_st.streaming.job import Job

BATCH_ROWS = 1024
ATTEMPTS = 3


class ShardWriter:
    """What runs on a worker: opened once, then called with numbers of shards.

    Args:
        job: What to do.
        out: Folder of the shards.
        kind: Their format.
        record: What they say of themselves.
    """

    def __init__(self, job: Job, out: Path, kind: str, record: Mapping[str, Any]) -> None:
        self.job, self.out, self.kind, self.record = job, out, kind, record
        self.source, _, self.head = job.open()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write the shards of these numbers; what is returned is their log."""
        found = []
        for number in batch["id"].tolist():
            start = number * self.job.shard_rows
            batches = Cutter(self.source, start, min(BATCH_ROWS, self.job.shard_rows)).take(self.job.shard_rows)
            path = self.out / shard_name(number, self.kind)
            shard = write_shard(batches, self.head, path, start, None, self.record)
            assert shard is not None
            found.append(shard.to_dict())
        return {name: np.array([entry[name] for entry in found]) for name in found[0]}


def shards_on_ray(
    job: Job, numbers: Sequence[int], out: Path, kind: str, record: Mapping[str, Any]
) -> Iterator[Shard]:
    """Write these shards; each is given back when it is there."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DataError('the engine "ray" needs Ray. Install it with `pip install "smec-st[ray]"`.') from error
    ours = not ray.is_initialized()
    if ours:
        start_ray(ray)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        workers = max(1, min(len(numbers), int(ray.cluster_resources().get("CPU", 1))))
        items = ray.data.from_items([{"id": number} for number in numbers], override_num_blocks=len(numbers))
        written = items.map_batches(
            ShardWriter,
            fn_constructor_args=(job, out.absolute(), kind, dict(record)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        )
        for row in written.iter_rows():
            yield Shard(str(row["file"]), int(row["start"]), int(row["rows"]), str(row["sha256"]))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, DataError) else error
        raise DataError(" ".join(str(cause).split())[-300:]) from error
    finally:
        if ours:
            ray.shutdown()


def start_ray(ray: Any) -> None:
    """Start Ray on this machine. A busy one may need several tries, as Ray waits only so long for its own server."""
    for left in reversed(range(ATTEMPTS)):
        try:
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
            return
        except Exception as error:  # a node that was too slow is a plain Exception
            ray.shutdown()
            if left == 0:
                reason = " ".join(str(error).split())[:200]
                raise DataError(f"Ray did not start ({reason}); try again, or use the engine `local`.") from error
