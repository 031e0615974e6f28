"""Write shards with Ray Data. Each worker opens the source itself, so no vectors pass through the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from types import ModuleType

import numpy as np

from smec_st.compressor import Compressor
from smec_st.data import DataError, VectorSource
from smec_st.quantization.head import Head
from smec_st.stores.shards import Cutter, Output, Shard, write_shard
from smec_st.system.optional import load_optional

ATTEMPTS = 3

OpenJob = Callable[[], tuple[VectorSource, Compressor, Head]]


class ShardWriter:
    """Writes shards on a worker. It opens the source once, and is then called with the number of each shard."""

    def __init__(self, open_job: OpenJob, output: Output) -> None:
        self.output = output
        self.source, _, self.head = open_job()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write the shard of a batch of one number, and return its log entry."""
        (number,) = batch["id"].tolist()
        cutter = Cutter(self.source, number * self.output.shard_rows, self.output.batch_rows)
        shard = write_shard(cutter.take(self.output.shard_rows), self.head, self.output, number)
        assert shard is not None
        return {name: np.array([value]) for name, value in asdict(shard).items()}


def shards_on_ray(open_job: OpenJob, numbers: Sequence[int], output: Output) -> Iterator[Shard]:
    """Write the shards with these numbers, and yield each when it is finished."""
    ray = load_optional("ray", 'the engine "ray"')
    load_optional("ray.data", 'the engine "ray"')
    is_ours = not ray.is_initialized()
    if is_ours:
        start_ray(ray)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        workers = max(1, min(len(numbers), int(ray.cluster_resources().get("CPU", 1))))
        items = ray.data.from_items([{"id": number} for number in numbers], override_num_blocks=len(numbers))
        written = items.map_batches(
            ShardWriter,
            fn_constructor_args=(open_job, replace(output, folder=output.folder.absolute())),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        )
        for row in written.iter_rows():
            kinds = {"file": str, "start": int, "rows": int, "sha256": str, "read": int, "input": str}
            yield Shard(**{name: kind(row[name]) for name, kind in kinds.items()})
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, DataError) else error
        raise DataError(" ".join(str(cause).split())[-300:]) from error
    finally:
        if is_ours:
            ray.shutdown()


def start_ray(ray: ModuleType) -> None:
    """Start Ray on this machine, with several attempts, since on a busy machine Ray can give up too early."""
    for left in reversed(range(ATTEMPTS)):
        try:
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
            return
        except Exception as error:  # Ray raises a plain Exception when a node is too slow
            ray.shutdown()
            if left == 0:
                reason = " ".join(str(error).split())[:200]
                raise DataError(f"Ray did not start ({reason}); try again, or use the engine `local`.") from error
