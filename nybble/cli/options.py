"""Options that ``generate`` and ``chat`` share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="demo, a checkpoint's folder, or a hub id (owner/name).")
]
Temperature = Annotated[
    float, typer.Option(help="0: always the likeliest token; 1: as the model says.")
]
TopP = Annotated[
    float, typer.Option(help="Keep the likeliest tokens up to this probability; 1: all.")
]
TopK = Annotated[int, typer.Option(help="Keep this many of the likeliest tokens; 0: all.")]
MinP = Annotated[
    float, typer.Option(help="Keep tokens this fraction as likely as the likeliest; 0: all.")
]
Penalty = Annotated[float, typer.Option(help="Above 1: say again less; 1: off.")]
Seed = Annotated[int | None, typer.Option(help="Repeat the same draws.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="End before this text; may be given several times.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
ActBits = Annotated[
    int | None,
    typer.Option(
        help="Precision of activations in quantized products: 8, 16 or 32.", show_default="16"
    ),
]
Context = Annotated[
    int | None,
    typer.Option(help="Most tokens of prompt and answer.", show_default="the model's, up to 8192"),
]
