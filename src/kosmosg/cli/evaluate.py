"""`kosmosg evaluate`: how good a model is, in numbers."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="evaluate",
    help="Measure how good a model is.",
)


@app.callback()
def _group() -> None: ...


@app.command()
def toyworld(
    model: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="The shipped model, or a directory.")
    ] = "nano",
    limit: Annotated[int, typer.Option(help="Prompts in each row; the first ones.")] = 512,
    rows: Annotated[
        str | None, typer.Option(metavar="ROW,ROW", help="Only these rows, e.g. oracle,stage3.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: rows, their rates and 95% intervals.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the JSON and picture grids.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the creatures, the places and the noise.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the sampler, if not the model's own.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="If not the model's own.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            help="bfloat16 is faster where the processor has it; rates move within noise."
        ),
    ] = "float32",
) -> None:
    """Draw held-out creatures of the toy world and let its judge say what came out.

    Prompts show the creature and name the place: no words tell what it looks like. Rows:
    judge (real pictures), vae (after the autoencoder), oracle (everything said in words to the
    decoder's own text tower), words_only (nothing shown), stage2, stage3 (the model), the two with
    _text (everything said in words), two_subjects_judge, two_subjects_oracle, two_subjects (two
    shown), stage1 (next words of captions), paired_loss (gap closed between words_only, 0, and
    oracle, 1, without drawing).
    """
    import json

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from kosmosg import release
    from kosmosg.toyworld import evaluate, scores, sheets, world

    names = evaluate.ROW_NAMES if rows is None else tuple(rows.replace(",", " ").split())
    evaluate.check_rows(names)
    diffusers_logging.disable_progress_bar()  # of loading; the one of drawing is ours
    transformers_logging.disable_progress_bar()
    loaded = world.load(release.find(model), evaluate.needs(names))
    report = evaluate.evaluate(
        loaded,
        rows=names,
        limit=limit,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        precision=precision,
        num_shown=sheets.NUM_SHOWN if out else 0,
    )
    text = json.dumps(report.rows, indent=2)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "toyworld.json").write_text(text + "\n", encoding="utf-8")
        sheets.save(report.shown, seed=seed, out_dir=out)
    print(text if as_json else scores.table(report.rows))


@app.command()
def subject(
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH=VALUE",
            help="Fields of `kosmosg train subject` to change, such as steps=60 adapter.rank=4.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="The shipped model, or a directory.")
    ] = "nano",
    subjects: Annotated[int, typer.Option(help="Held-out creatures, each tuned by itself.")] = 8,
    limit: Annotated[int, typer.Option(help="Prompts for each, before and after.")] = 48,
    others: Annotated[int, typer.Option(help="Prompts for other creatures, each time.")] = 128,
    prior: Annotated[
        int, typer.Option(help="Records of other creatures that tuning sees too; 0 for none.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="Of creatures, places and noise.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the sampler, if not the model's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tune to held-out creatures of the toy world, five pictures each, and ask the judge.

    The rates of a creature before and after its tuning, and those of other held-out creatures under
    the same adapter; changes with 95% intervals over creatures and prompts. Takes one to two
    minutes of one core for each tuning, and as much for asking.
    """
    import json
    import sys

    from diffusers.utils import logging as diffusers_logging

    from kosmosg import release
    from kosmosg.cli.subject import configured
    from kosmosg.toyworld import subject as tuning
    from kosmosg.toyworld import world

    diffusers_logging.disable_progress_bar()
    report = tuning.evaluate(
        world.load(release.find(model), {"stage3"}),
        configured([f"init={model}", *(changes or [])]),
        num_subjects=subjects,
        limit=limit,
        num_others=others,
        seed=seed,
        num_prior=prior,
        num_inference_steps=steps,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(report, indent=2) if as_json else tuning.table(report))


@app.command()
def foundation(
    model: Annotated[
        str,
        typer.Option(metavar="NAME|DIR", help="The shipped model, or WORKSPACE/model in training."),
    ] = "nano",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what nano stands on, before stages are built on it; exit 1 if a gate is missed.

    A decoder cannot draw a word that its text tower collapsed, a language model cannot read a shape
    that the vision tower does not show, and no picture is crisper than its autoencoder: the
    autoencoder's error on held-out pictures, how far one changed word moves the text states, and
    how well a linear reader finds the shape in the patches.
    """
    import json
    from dataclasses import asdict

    from transformers.utils import logging as transformers_logging

    from kosmosg import release
    from kosmosg.toyworld import gates, world

    transformers_logging.disable_progress_bar()
    parts = world.load_foundation(release.find(model))
    measured = gates.measure(parts.vae, parts.text_encoder, parts.tokenizer, parts.vision)
    if as_json:
        print(json.dumps([asdict(gate) | {"passed": gate.passed} for gate in measured], indent=2))
    else:
        for gate in measured:
            mark = "ok" if gate.passed else "MISSED"
            print(f"{gate.what:<32} {gate.value:>7.2f}   at least {gate.at_least:>5.2f}   {mark}")
    if not all(gate.passed for gate in measured):
        raise typer.Exit(1)


@app.command()
def construction(
    model: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="The shipped model, or a directory.")
    ] = "nano",
    limit: Annotated[
        int, typer.Option(help="Pictures of one creature, and as many of two; the first ones.")
    ] = 512,
    seed: Annotated[int, typer.Option(help="Of the creatures and the places.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: rows, their rates and 95% intervals.")
    ] = False,
) -> None:
    """Let the toy world's chain describe held-out creatures and cut them out; compare with truth.

    The language model captions a picture, a rule finds what the caption names, a small CLIPSeg
    finds its pixels: what `kosmosg construct` does with large models. First table: words of the
    caption that are right. Second: entities found and rightly so, masks against the renderer's
    (mean intersection over union, the share above .8, and the mean with true words for prompts),
    and masks that lie on the other creature.
    """
    import json

    from transformers.utils import logging as transformers_logging

    from kosmosg import release
    from kosmosg.toyworld import chain, construction

    transformers_logging.disable_progress_bar()
    report = construction.evaluate(chain.nano_steps(release.find(model)), limit=limit, seed=seed)
    print(json.dumps(report, indent=2) if as_json else construction.table(report))
