"""Commands that put a trained model to use."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fl_privacy.cli_owner import FILE


@click.command("export")
@click.argument("run", type=FILE)
@click.argument("out", type=FILE)
@click.option("--int8", is_flag=True, help="Add model.int8.onnx: weights in 8 bits, smaller and faster, not quite the same.")
def export_command(run: Path, out: Path, int8: bool) -> None:
    """Write the model of RUN as ONNX, with tokenizer, model card and digests, into the new folder OUT.

    RUN is the folder of a finished run (`train --out`), or of a saved model. The ONNX model is compared with PyTorch's on texts
    of many lengths; one that differs is not written.

    \b
    fl-privacy export trained exported --int8
    fl-privacy serve exported
    """
    from fl_privacy.display import console
    from fl_privacy.serving.onnx_export import export_model

    told = export_model(run, out, int8=int8)
    console.print(f"{out}: {told.task}, texts of up to {told.max_length} tokens, card in {out / 'README.md'}")
    console.print(f"scores differ from PyTorch's by at most {told.largest_difference:.2g} ({told.tolerance:g} is allowed)")
    if told.int8 is not None:
        share = "was not measured, for want of validation rows" if told.int8.share is None else f"{told.int8.share:.2%}"
        console.print(f"8 bits: share of equal best guesses on {told.int8.predictions} predictions: {share}")


@click.command("serve")
@click.argument("export", type=FILE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at. There is no password, and no TLS.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65_535), help="Port to listen at.")
@click.option("--threads", default=os.cpu_count() or 1, type=click.IntRange(1), help="Threads of a pass; by default all cores.")
@click.option("--int8", is_flag=True, help="Serve model.int8.onnx.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1, 1024), help="Texts in one pass at most.")
@click.option(
    "--wait-ms", default=5.0, show_default=True, type=click.FloatRange(0, 1000), help="How long a text waits for more."
)
@click.option("--queue", default=128, show_default=True, type=click.IntRange(1), help="Texts that may wait; more get 503.")
def serve_command(export: Path, host: str, port: int, threads: int, int8: bool, batch: int, wait_ms: float, queue: int) -> None:
    """Serve the model in EXPORT over HTTP: /v1/fill-mask, /v1/classify or /v1/ner, /healthz, /metrics, /openapi.json.

    No text is logged. Anybody who reaches the address may use the model: let it listen at others than 127.0.0.1 only behind a
    proxy that asks who they are.
    """
    import uvicorn

    from fl_privacy.serving.export_format import require_packages

    require_packages()
    from fl_privacy.serving.app import Limits, make_app
    from fl_privacy.serving.engine import Engine

    engine = Engine(export, threads, int8=int8)
    click.echo(f"{engine.export.source}: http://{host}:{port}/v1/{engine.export.task}; stop with Ctrl-C")
    app = make_app(engine, Limits(batch, wait_ms, queue))
    uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning")
