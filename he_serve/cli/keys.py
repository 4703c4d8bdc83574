"""`he-serve keys new | list | rotate | revoke`, and the options that every command with keys shares."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ckks.errors import InputError
from he_serve.cli.output import Json, console, emit, note, progress

app = typer.Typer(
    help="Secret keys on this machine, and their evaluation keys on servers.", no_args_is_help=True
)

Url = Annotated[str, typer.Option(help="The server.")]
Model = Annotated[str | None, typer.Option(help="The model; may be left out where the server has only one.")]
Store = Annotated[Path, typer.Option("--key-store", help="Folder of key files.", envvar="HE_SERVE_KEYS")]
Plain = Annotated[bool, typer.Option("--plain", help="Secret-key files without a passphrase, mode 0600.")]
KeyLibrary = Annotated[
    str, typer.Option("--library", metavar="seal|openfhe", help="Whose keys; OpenFHE's need Python 3.10.")
]
OwnPrimes = Annotated[
    bool, typer.Option("--own-primes", help="Have OpenFHE choose its own primes; the model's are faster.")
]
DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_STORE = Path(typer.get_app_dir("he-serve"))


def passphrase(plain: bool) -> str | None:
    """The passphrase for secret-key files: HE_SERVE_PASSPHRASE, or a prompt; None with --plain. Raises InputError."""
    if plain:
        return None
    given = os.environ.get("HE_SERVE_PASSPHRASE")
    if given is None and sys.stdin.isatty():
        given = typer.prompt("Passphrase for the secret key", hide_input=True, err=True)
    if not given:
        raise InputError(
            "secret keys need a passphrase: set HE_SERVE_PASSPHRASE, answer the prompt, or use --plain"
        )
    return given


def read_library(text: str) -> Literal["seal", "openfhe"]:
    """The value of --library. Raises InputError."""
    if text == "openfhe":
        return "openfhe"
    if text == "seal":
        return "seal"
    raise InputError(f"--library {text}: keys come from `seal` or `openfhe`")


@app.command()
def new(
    url: Url = DEFAULT_URL,
    model: Model = None,
    key_store: Store = DEFAULT_STORE,
    plain: Plain = False,
    library: KeyLibrary = "seal",
    own_primes: OwnPrimes = False,
    as_json: Json = False,
) -> None:
    """Accept the model's present bundle, make new keys for it (older ones are deleted), and upload the evaluation keys."""
    _renew(url, model, key_store, plain, library, own_primes, as_json, pinned=False)


@app.command()
def rotate(
    url: Url = DEFAULT_URL,
    model: Model = None,
    key_store: Store = DEFAULT_STORE,
    plain: Plain = False,
    library: KeyLibrary = "seal",
    own_primes: OwnPrimes = False,
    as_json: Json = False,
) -> None:
    """Replace the keys of a model by new ones; the server forgets the old. Unlike new, refuses a bundle that has changed."""
    _renew(url, model, key_store, plain, library, own_primes, as_json, pinned=True)


def _renew(
    url: str,
    model: str | None,
    key_store: Path,
    plain: bool,
    library: str,
    own_primes: bool,
    as_json: bool,
    *,
    pinned: bool,
) -> None:
    from he_serve.client import Client

    with (
        progress() as report,
        Client(
            url,
            model=model,
            key_store=key_store,
            passphrase=passphrase(plain),
            library=read_library(library),
            own_primes=own_primes,
            progress=report,
        ) as client,
    ):
        if pinned:
            client.bundle()  # raises if it is not the one remembered
        key_id = client.new_keys()
        bundle = client.bundle()
    p = bundle.checked_parameters()
    if as_json:
        emit(
            {
                "model": bundle.name,
                "bundle_digest": bundle.digest,
                "key_id": key_id,
                "security_bits": p.security_bits,
            }
        )
    else:
        console().print(
            f"keys for {bundle.name} are ready on {url}: {p.security_bits}-bit security, {p}", markup=False
        )


@app.command("list")
def list_keys(key_store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """List the secret-key files on this machine and the servers that hold their evaluation keys."""
    from he_serve.keyfolder import KeyFolder

    keys = KeyFolder(key_store, None).keys() if key_store.is_dir() else []
    if as_json:
        emit(
            {
                "keys": [
                    {"file": str(k.file), "model": k.model, "servers": [u.url for u in k.uploaded]}
                    for k in keys
                ]
            }
        )
        return
    for key in keys:
        servers = ", ".join(u.url for u in key.uploaded) or "no server"
        console().print(f"{key.model}: {key.file} ({servers})", markup=False, soft_wrap=True)
    if not keys:
        note(f"no keys in {key_store}; he-serve keys new makes them")


@app.command()
def revoke(
    url: Url = DEFAULT_URL,
    model: Model = None,
    key_store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Have a server forget the evaluation keys of a model. The secret key stays on this machine."""
    from he_serve.client import Client

    with Client(url, model=model, key_store=key_store) as client:
        revoked = client.revoke()
        name = client.bundle().name
    if as_json:
        emit({"model": name, "revoked": revoked})
    else:
        console().print(
            f"{name}: {'revoked' if revoked else 'this server holds no keys of ours'}", markup=False
        )
    if not revoked:
        raise typer.Exit(1)
