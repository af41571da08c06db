"""Derive the groups and subsets of `dcf.data.wordnet` from WordNet 3.0; prints them as Python.

WordNet's ids are byte offsets in `data.noun` of release 3.0, which Debian packs as `wordnet-base`. Which synsets
ImageNet has is not part of WordNet: torchvision lists the names of the 1000 classes in ascending order of their ids.
Names have several meanings (`drum`, `peacock`), so that the order decides between them.

    python tests/derive_imagenet_groups.py [/usr/share/wordnet]
"""

from __future__ import annotations

import bisect
import sys
from dataclasses import dataclass, field
from pathlib import Path

from torchvision.models._meta import _IMAGENET_CATEGORIES

#: Group: synsets whose hyponyms are in it, and synsets whose hyponyms are not.
ROOTS = {
    "automobile": (["02958343"], ["04490091"]),  # car, without what is a truck too (minivan)
    "truck": (["04490091", "04465501"], ["04465666"]),  # truck and farm tractor, without the truck called tractor
    "lizard": (["01674464"], []),
    "fish": (["02512053"], []),
    "terrier": (["02092468"], []),
    "insect": (["02159955"], []),
}

#: Subset: places of its classes in torchvision's list, which is the usual numbering of ImageNet's classes; which ones
#: they are is given by Cazenavette et al., CVPR 2022.
PLACES = {
    "fruit": [943, 945, 948, 949, 950, 951, 952, 953, 954, 957],
    "meow": [281, 282, 283, 284, 285, 287, 289, 290, 291, 292],
    "nette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "squawk": [9, 22, 84, 88, 89, 96, 100, 130, 144, 145],
    "woof": [155, 159, 162, 167, 182, 193, 207, 229, 258, 273],
    "yellow": [11, 72, 291, 309, 599, 779, 951, 954, 986, 987],
}

#: Where neither name nor order settles which synset is meant, and it is not the commonest: the taxi.
SETTLED = {"cab": "02930766"}


@dataclass
class WordNet:
    """Nouns: lemmas and hyponyms by id, and ids by lemma in the order of senses."""

    lemmas: dict[str, list[str]] = field(default_factory=dict)
    hyponyms: dict[str, list[str]] = field(default_factory=dict)
    senses: dict[str, list[str]] = field(default_factory=dict)

    def below(self, root: str) -> set[str]:
        """`root` and everything that is a kind of it."""
        found, open_ = set(), [root]
        while open_:
            one = open_.pop()
            if one not in found:
                found.add(one)
                open_ += self.hyponyms[one]
        return found


def read(folder: Path) -> WordNet:
    """Read the noun files; the format is that of the manual page wndb(5WN)."""
    net = WordNet()
    for line in _entries(folder / "data.noun"):
        fields = line.partition("|")[0].split()
        words = int(fields[3], 16)
        net.lemmas[fields[0]] = fields[4 : 4 + 2 * words : 2]
        pointers = fields[5 + 2 * words :]
        kinds = zip(pointers[::4], pointers[1::4], strict=False)
        net.hyponyms[fields[0]] = [target for kind, target in kinds if kind in ("~", "~i")]
    for line in _entries(folder / "index.noun"):
        fields = line.split()
        net.senses[fields[0]] = fields[-int(fields[2]) :]
    return net


def _entries(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")]


def align(names: list[str], net: WordNet) -> list[str]:
    """An id for each name, or nothing: the longest ascending choice, and the commonest meaning that fits it."""
    senses = [net.senses.get(name.lower().replace(" ", "_"), []) for name in names]
    ids = _longest_ascending(senses)
    known = [(place, one) for place, one in enumerate(ids) if one]
    for place, one in known:
        at = known.index((place, one))
        low = known[at - 1][1] if at else ""
        high = known[at + 1][1] if at + 1 < len(known) else "~"
        ids[place] = SETTLED.get(names[place]) or next(s for s in senses[place] if low < s < high)
    return ids


def _longest_ascending(choices: list[list[str]]) -> list[str]:
    """At most one of each, such that they ascend and are as many as can be."""
    ends: list[str] = []  # the smallest end of an ascending run, by its length
    runs: list[tuple[int, str, int]] = []  # place, id and the run before, of every run that was the best
    last: list[int] = []
    for place, options in enumerate(choices):
        for one in sorted(options, reverse=True):  # descending, so that a name is used once
            length = bisect.bisect_left(ends, one)
            runs.append((place, one, last[length - 1] if length else -1))
            ends[length : length + 1], last[length : length + 1] = [one], [len(runs) - 1]
    chosen, at = [""] * len(choices), last[-1]
    while at >= 0:
        place, one, at = runs[at]
        chosen[place] = one
    return chosen


def derive(folder: Path) -> dict[str, dict[str, str]]:
    """Each group: ids and first lemmas of ImageNet's classes in it, ascending."""
    net = read(folder)
    classes = set(align(list(_IMAGENET_CATEGORIES), net)) - {""}
    groups = {}
    for group, (roots, without) in ROOTS.items():
        inside = set().union(*map(net.below, roots)) - set().union(*map(net.below, without))
        groups[group] = named(inside & classes, net)
    return groups


def derive_subsets(folder: Path) -> dict[str, dict[str, str]]:
    """Each subset likewise."""
    net = read(folder)
    ids = align(list(_IMAGENET_CATEGORIES), net)
    return {subset: named({ids[place] for place in places}, net) for subset, places in PLACES.items()}


def named(ids: set[str], net: WordNet) -> dict[str, str]:
    """Ids as ImageNet writes them, ascending, each with its first lemma."""
    return {f"n{one}": net.lemmas[one][0].replace("_", " ") for one in sorted(ids)}


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/wordnet")
    for group, members in {**derive(place), **derive_subsets(place)}.items():
        print(f'    "{group}": {{  # {len(members)}')
        for one, name in members.items():
            print(f'        "{one}": "{name}",')
        print("    },")
