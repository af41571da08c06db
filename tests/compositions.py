"""Run every composition of this repository's components once, and write down what came of it.

    python tests/compositions.py

writes the file `compositions.json` of each package, which `dcf list-plugins --matrix` shows.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from dcf.components import Kind
from dcf.compositions import FILE, Cell, Status, axes, file_text, owner, package_of
from dcf.recipes import all_recipes
from dcf.registry import registry
from dcf.spec import parse

#: Options that keep an iteration short, and labels that have somewhere to go.
TINY = {
    "bptt": "bptt:steps=4,batch=1,batch_real=4",
    "dc": "dc:match_steps=2,net_epochs=1",
    "dcc": "dcc:match_steps=2,net_epochs=1,outer_warmup=0,inner_warmup=0",
    "dd": "dd:epochs=1,batch_real=8",
    "haba": "haba:styles=2",
    "idc": "idc:inner_loop=2,n_data=8,batch_real=4,batch_train=4",
    "mtt": "mtt:syn_steps=3,expert_epochs=2,max_start_epoch=1,experts=2",
    "soft-labels": "soft-labels:init=uniform",
}


def recipe_triples() -> set[tuple[str, str, str]]:
    """What the recipes are made of, as they run on the digits."""
    found = set()
    for recipe in all_recipes().values():
        run = recipe.settings("digits")
        param = parse(run.get("param", "pixels"))
        names = [part.name for part in param]
        labels = parse(run.get("labels", "hard")).specs[0].name
        names += [f"{labels}-labels"] if labels != "hard" and f"{labels}-labels" not in names else []
        names = names[1:] if names[0] == "pixels" and len(names) > 1 else names
        (augment, *more) = [part.name for part in parse(run.get("augment", "none"))]
        if not more:
            found.add((parse(run["matcher"]).specs[0].name, "+".join(names), augment))
    return found


def tried(matcher: str) -> Iterator[Cell]:
    """Every composition of a matcher, really run."""
    from dcf.testing.compositions import try_composition

    recipes = recipe_triples()
    _, params, augmenters = axes(registry(), recipes)
    for param in params:
        spec = "+".join(TINY.get(part, part) for part in param.split("+"))
        for augmenter in augmenters:
            status, reason = try_composition(TINY.get(matcher, matcher), spec, augmenter)
            key = (matcher, param, augmenter)
            status = Status.TESTED if key in recipes and status is Status.RUNS else status
            yield Cell(*key, status, reason, owner(key).plugin.distribution)


def main() -> None:
    """Write all files."""
    logging.disable(logging.WARNING)
    by_package: dict[str, list[Cell]] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DCF_CACHE"] = cache
        for matcher in registry().names(Kind.MATCHER):
            for cell in tried(matcher):
                by_package.setdefault(package_of(owner(cell.key)), []).append(cell)
    for package, found in by_package.items():
        file = Path(str(resources.files(package).joinpath(FILE)))
        file.write_text(file_text(sorted(found, key=lambda cell: cell.key)), encoding="utf-8")
        print(f"{len(found):4} {file}")


if __name__ == "__main__":
    main()
