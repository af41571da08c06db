"""Thumbnail parameterization for dcf."""

from collections.abc import Iterator

import dcf


@dcf.hookimpl
def dcf_components() -> Iterator[dcf.Component]:
    """Announce the parameterization; its code is imported when it is first used."""
    yield dcf.Component(
        kind="param",
        name="thumbnail",
        target="dcf_thumbnail.param:Thumbnail",
        summary="store k x k thumbnails and upsample them",
    )
