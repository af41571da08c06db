"""Base of datasets that are made of other datasets."""

from __future__ import annotations

from dcf.build import create
from dcf.components import Kind
from dcf.data.base import DatasetProvider
from dcf.data.nested import nested_fields
from dcf.data.real import RealData
from dcf.errors import DataError
from dcf.spec import Option, Spec, Stack, parse_one

__all__ = ["DerivedDataset"]


class DerivedDataset(DatasetProvider):
    """Base of dataset components with options that are dataset specs (`dcf.data.nested.DatasetSpec`)."""

    @property
    def id(self) -> str:
        """The canonical spec, with the ids of the datasets it is made of; their places are left out."""
        names = nested_fields(type(self.config))
        inner = [Option(name, Stack((parse_one(self.part(name).id),))) for name in names]
        own = parse_one(super().id).options
        return str(Spec(self.name, (*inner, *(o for o in own if o.key not in names))))

    def part(self, option: str) -> DatasetProvider:
        """The dataset that an option names."""
        made: DatasetProvider = create(Kind.DATASET, getattr(self.config, option))
        return made

    def load_part(self, option: str) -> RealData:
        """Load the dataset that an option names.

        Raises:
            DataError: Saying which of the datasets cannot be had.
        """
        try:
            return self.part(option).load()
        except DataError as error:
            raise DataError(f"{option} of {self.name}: {error}") from None
