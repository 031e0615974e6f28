"""``smec-st serve``."""

from __future__ import annotations

import click

from smec_st.cli.options import thinking


@click.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any free port.")
@click.option("--name", help="What clients call the model; by default its id, or the folder's name.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Texts that are embedded at a time; by default 4 on a CPU and 32 on a GPU.",
)
def serve(model: str, host: str, port: int, name: str | None, batch_size: int | None) -> None:
    """Serve MODEL (a folder or an id on the Hub) as OpenAI's /v1/embeddings does, until Ctrl-C.

    There is no password: listen on an address that others reach only behind a proxy that has one.
    """
    with thinking("loading"):
        from smec_st.serve.model import ServedModel
        from smec_st.serve.server import listen
        from smec_st.serve.server import serve as run
    with listen(host, port) as listener:
        with thinking("loading"):
            served = ServedModel(model, name)
        address = f"[{host}]" if ":" in host else host
        where = f"http://{address}:{listener.getsockname()[1]}/v1"
        sizes = ", ".join(map(str, served.sizes))
        line = f"serving {served.name} ({sizes} dimensions) on {where}/embeddings"
        try:
            run(served, listener, batch_size or served.batch, lambda server: click.echo(line))
        except KeyboardInterrupt:  # uvicorn raises it again after it stopped
            click.echo("stopped", err=True)
