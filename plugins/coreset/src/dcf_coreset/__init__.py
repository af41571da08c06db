"""Coresets for dcf: selectors that pick real images."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]

#: Name, class, options, summary and paper of every selector.
_SELECTORS = (
    (
        "herding",
        "geometric:Herding",
        "FeatureConfig",
        "real images whose mean embedding follows that of their class",
        "Welling, ICML 2009; Rebuffi et al., CVPR 2017",
    ),
    (
        "k-center",
        "geometric:KCenter",
        "KCenterConfig",
        "real images that leave none of their class far away",
        "Sener and Savarese, ICLR 2018",
    ),
    (
        "k-means",
        "geometric:KMeans",
        "FeatureConfig",
        "real images nearest to the centres of clusters of their class",
        "Cui et al., NeurIPS 2022",
    ),
    (
        "forgetting",
        "forgetting:Forgetting",
        "TrainingConfig",
        "real images that a training forgets most often",
        "Toneva et al., ICLR 2019",
    ),
    (
        "least-confidence",
        "scored:LeastConfidence",
        "TrainingConfig",
        "real images with the lowest probability of their likeliest class",
        "Lewis and Gale, SIGIR 1994",
    ),
    (
        "entropy",
        "scored:Entropy",
        "TrainingConfig",
        "real images with the highest entropy of the predicted classes",
        "Settles, 2009",
    ),
    (
        "margin",
        "scored:Margin",
        "TrainingConfig",
        "real images whose two likeliest classes are closest",
        "Scheffer et al., IDA 2001",
    ),
    (
        "el2n",
        "scored:EL2N",
        "EnsembleConfig",
        "real images with the largest error early in training",
        "Paul et al., NeurIPS 2021",
    ),
    (
        "grand",
        "scored:GraNd",
        "EnsembleConfig",
        "real images with the largest gradient early in training",
        "Paul et al., NeurIPS 2021",
    ),
)

_RECIPES = {
    "herding": "real images chosen by herding",
    "k-center": "real images chosen by farthest-first traversal",
    "k-means": "real images nearest to cluster centres",
    "forgetting": "real images that a training forgets most often",
}


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the selectors and their recipes."""
    papers = {name: paper for name, _, _, _, paper in _SELECTORS}
    for name, target, config, summary, paper in _SELECTORS:
        yield dcf.Component("selector", name, f"dcf_coreset.{target}", summary, paper, f"dcf_coreset.options:{config}")
    for name, summary in _RECIPES.items():
        yield dcf.Component("recipe", name, f"dcf_coreset:recipes/{name}.toml", summary, papers[name])
