"""A matcher without a package: objects work wherever a spec does.

    python examples/scripts/own_matcher.py [ITERATIONS]

It matches the mean image of each class, which is the least that a matcher can do. To make it available on the command
line, put it into a plugin: docs/tutorial-plugin.md.
"""

import sys
from collections.abc import Iterator

import dcf


class MeanImage(dcf.Matcher):
    """Squared distance of the mean real and the mean synthetic image, summed over pixels and classes."""

    defaults = dcf.MatcherDefaults(iterations=50, lr=0.1, momentum=0.5, init="noise")

    def outer(self, ctx: dcf.Context, it: int) -> Iterator[dcf.Step]:
        for chunk in ctx.chunks():
            real = ctx.real(chunk.classes, 64, "mean").mean(1)
            synthetic = ctx.synthetic(chunk.classes).mean(1)
            yield dcf.Step((real - synthetic).square().sum(), update=chunk.last)


def main(iterations: int = 50) -> list[float]:
    losses: list[float] = []
    dcf.condense(
        matcher=MeanImage(),
        data="digits",
        ipc=1,
        iterations=iterations,
        evaluate=False,
        on_step=lambda progress: losses.append(progress.loss),
    )
    print(f"loss {losses[0]:.4g} in the first iteration, {losses[-1]:.4g} in the last")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
