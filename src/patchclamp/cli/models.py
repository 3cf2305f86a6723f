"""`patchclamp models`: the embedded models, and whether any model can be addressed."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from patchclamp.cli.terminal import (
    as_json_text,
    as_table,
    note,
    say,
    say_json,
    standard_output_kept_clean,
)

models = App(name="models", help="Language models: those that come with patchclamp, and checks of any other.")

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.", show_default=False)]


@models.command(name="list")
def list_models(*, as_json: Json = False) -> None:
    """List the models that come with patchclamp and whether they are on this machine."""
    import pandas

    with standard_output_kept_clean():
        from patchclamp.model.embedded import EMBEDDED, is_cached

        rows = [
            {
                "name": name,
                "cached": is_cached(name),
                "download_mb": model.download_mb,
                "licence": model.licence,
                "summary": model.summary,
            }
            for name, model in EMBEDDED.items()
        ]
    if as_json:
        say_json(as_json_text(rows))
        return
    say(as_table(pandas.DataFrame([row | {"cached": "yes" if row["cached"] else "no"} for row in rows]))[0])


@models.command
def fetch(name: Annotated[str, Parameter(help="One of `patchclamp models list`.")], /) -> None:
    """Download a model that comes with patchclamp and convert it, once."""
    with standard_output_kept_clean():
        from patchclamp.model import embedded

        folder = embedded.fetch(name, note)
    say(str(folder))


@models.command
def check(
    ref: Annotated[str, Parameter(help="An embedded model, a Hugging Face id, a local folder or a .gguf file.")],
    /,
    *,
    trust_remote_code: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Run the Python code that comes with the model."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove that a model is understood: print each identity with its largest error."""
    import pandas

    from patchclamp.cli import run
    from patchclamp.cli.build import RunOptions

    with standard_output_kept_clean():
        # Loading refuses a model of which an identity fails, and says which.
        model = run.load_model(RunOptions(model=ref, trust_remote_code=trust_remote_code))
    rows = [identity._asdict() for identity in model.identities]
    if as_json:
        say_json(as_json_text({"model": ref, "family": model.family, "ok": True, "identities": rows}))
        return
    say(as_table(pandas.DataFrame([row | {"ok": "yes"} for row in rows]))[0])
    say(f"{model.name} is addressed as {model.family}: {model.n_layers} blocks, width {model.d_model}.")
