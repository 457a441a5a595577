"""`kosmosg inspect`: how a prompt becomes a sequence; `kosmosg doctor`: is all installed well."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kosmosg.cli.options import Model, Parts
from kosmosg.cli.prompt import read_parts
from kosmosg.note import Picture, prompt_of

if TYPE_CHECKING:
    from kosmosg.sequence import Encoded
    from kosmosg.tokenizer import Tokenizer

app = typer.Typer()


@app.command()
def inspect(
    parts: Parts,
    model: Model = "nano",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show how a prompt becomes the sequence that the model reads.

    Position, id and piece of each word; the slots of each picture; lengths; and what is odd about
    the prompt. Nothing is generated, so prompts that the model would refuse are shown too.

    \b
    Example:
      kosmosg inspect "a creature" me.png "in the snow"
    """  # noqa: D301 -- click's mark for text to be kept as it is
    words = read_parts(parts)

    from kosmosg import release, sequence
    from kosmosg.cli.oddities import oddities
    from kosmosg.images import shown
    from kosmosg.tokenizer import Tokenizer

    directory = release.find(model)
    limits = release.read_generation_config(directory)
    tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
    sizes = release.read_sizes(directory)
    encoded = sequence.encode(
        prompt_of(words),
        tokenizer,
        num_latents=sizes.num_latents,
        image_size=sizes.image_size,
    )
    pictures = [part for part in words if isinstance(part, Picture)]
    report = {
        "model": model,
        "length": len(encoded.input_ids),
        "max_length": sizes.max_length,
        "pictures": [
            {"file": shown(one.path), "width": one.image.width, "height": one.image.height}
            for one in pictures
        ],
        "max_pictures": limits.max_pictures,
        "trained_pictures": limits.trained_pictures,
        "sequence": list(_rows(encoded, tokenizer)),
    }
    report["warnings"] = list(oddities(words, tokenizer, sizes, limits))
    print(json.dumps(report, indent=2, ensure_ascii=False) if as_json else _table(report))


@app.command()
def doctor() -> None:
    """Check the installation; say what is wrong and what to type. Exits with 1 if something is."""
    from kosmosg.doctor import examine

    wrong = 0
    for finding in examine():
        print(
            f"WRONG  {finding.what}: {finding.remedy}"
            if finding.remedy
            else f"ok     {finding.what}"
        )
        wrong += bool(finding.remedy)
    if wrong:
        raise typer.Exit(1)


def _rows(encoded: "Encoded", tokenizer: "Tokenizer") -> Iterator[dict[str, Any]]:
    """Yield one row for each id, and one for all slots of a picture."""
    picture = 0
    ids, slots = encoded.input_ids.tolist(), encoded.image_mask.tolist()
    for position, (index, is_slot) in enumerate(zip(ids, slots, strict=True)):
        if not is_slot:
            yield {"position": position, "id": index, "piece": tokenizer.symbol(index)}
        elif not slots[position - 1]:
            picture += 1
            num_slots = slots.index(False, position) - position
            yield {"position": position, "slots": num_slots, "picture": picture}


def _table(report: dict[str, Any]) -> str:
    lines = ["position       id  piece"]
    for row in report["sequence"]:
        if "slots" in row:
            shown = report["pictures"][row["picture"] - 1]
            last = row["position"] + row["slots"] - 1
            lines.append(
                f"{row['position']:>4}-{last:<4}        {row['slots']} slots of picture "
                f"{row['picture']}: {shown['file']}, {shown['width']} x {shown['height']}"
            )
        else:
            lines.append(f"{row['position']:>4}     {row['id']:>7}  {row['piece']}")
    lines.append(
        f"{report['length']} positions of at most {report['max_length']}; "
        f"{len(report['pictures'])} pictures of at most {report['max_pictures']}"
    )
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    return "\n".join(lines)
