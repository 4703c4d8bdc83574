"""The command line: `he-serve COMMAND`. Importing it loads no command's libraries; each command imports its own."""

from __future__ import annotations

import sys

import typer

from ckks.errors import HeError, RemoteError
from he_serve.cli import demo, doctor, keys, models, predict, serve, trial
from he_serve.cli.output import fail

app = typer.Typer(
    name="he-serve",
    help="Compile ONNX models to CKKS circuits, serve them, and have encrypted images classified.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models.register(app)
trial.register(app)
serve.register(app)
app.add_typer(keys.app, name="keys")
predict.register(app)
demo.register(app)
doctor.register(app)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 the answer is no, 2 the caller's input is bad, 3 the other side failed."""
    try:
        app()
    except HeError as error:
        sys.exit(fail(str(error), 3 if isinstance(error, RemoteError) else 2))
    except ModuleNotFoundError as error:
        sys.exit(
            fail(
                f"this command needs the Python package {error.name}; install he-serve with the extras it belongs to",
                2,
            )
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(fail(f"{where}{error.strerror or error}", 2))
    except KeyboardInterrupt:
        sys.exit(130)
