"""Commands about data: `muonlab data ...`. Heavy imports wait until a command needs them."""

from __future__ import annotations

from cyclopts import App

from muonlab.cli.app import app

data = App(name="data", help="Prepare data sets, train tokenizers, look at what is prepared.")
app.command(data)
