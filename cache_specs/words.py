"""What words mean, at every door: in the names of folders and files, in the cells of tables, in
arrays, in Python.

    means_no_label("Unlabeled")     that there is no label; --as-class makes a class of such a word
    split_named("train_images")     'train': a name that says a split, and nothing else
    split_within("imagenet-val-03") 'val': the one split that a longer name says
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from base.errors import UsageError

# As they are after `_bare`: "<NA>", "#N/A", "not_labelled" and "Not labelled" are there too.
_NOTHING = (
    "n/a n.a na n/an/a nan nat nil none null unk unknown unlabelled unlabeled unlabel nolabel "
    "nolabels notlabelled notlabeled unclassified unannotated notannotated unassigned undefined "
    "unspecified notavailable notapplicable tbd 1.#ind 1.#qnan"
)
# What spreadsheets write where a formula has failed, and what people write for nothing.
_SIGNS = "? ?? ??? - -- --- – — #n/a #nv #value! #ref! #name? #div/0! #num! #null! (blank)"
# Words that stand beside that of a split and add nothing to it.
_FILLERS = (
    "the set data dataset split subset part folder dir files image images img imgs photo photos "
    "picture pictures pic pics jpg jpeg png raw final v"
)
NO_LABEL, SIGNS = frozenset(_NOTHING.split()), frozenset(_SIGNS.split())
FILLERS = frozenset(_FILLERS.split())
SPLIT_WORDS = {
    "train": "train training trainset traindata trainval trn",
    "val": "val valid validation valset validset dev devset",
    "test": "test testing testset testdata tst holdout heldout",
    "unlabelled": "unlabelled unlabeled unsupervised",
}
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words.split()}


def means_no_label(word: str, as_class: Iterable[str] = ()) -> bool:
    """Whether a label says that there is none. as_class: words that are classes all the same."""
    folded = _folded(word)
    if not folded:
        return True
    if folded not in SIGNS and _bare(folded) not in NO_LABEL:
        return False
    return folded not in {_folded(other) for other in as_class}


def without_words(
    labels: list[str], as_class: Iterable[str] = ()
) -> tuple[list[str], Counter[str]]:
    """The labels, '' for those that say that there is none; and how many images each such word
    had."""
    hidden = Counter[str]()
    meant = {label: means_no_label(label, as_class) for label in set(labels)}
    found = []
    for label in labels:
        if label and meant[label]:
            hidden[label] += 1
        found.append("" if meant[label] else label)
    return found, hidden


def read_as_class(given: str) -> list[str]:
    """--as-class unknown,none -> ['unknown', 'none']. Raises UsageError for a word that is a class
    anyway."""
    words = [word.strip() for word in given.split(",") if word.strip()]
    for word in words:
        if not means_no_label(word):
            raise UsageError(
                f"--as-class {word}: this word is a class anyway; leave it out. It is for words "
                "that mean that there is no label, such as unknown, none and n/a",
                instead={"--as-class": None},
            )
    return words


def split_named(name: str) -> str:
    """The split that a name says with no word beside it but 'images', 'set' and their like; ''
    where it is another name, or says several."""
    split, rest = split_and_rest(name)
    return split if set(rest) <= FILLERS else ""


def split_within(name: str) -> str:
    """The split that a longer name says, such as imagenet-train-0001.tar; '' where it says none, or
    several."""
    return split_and_rest(name)[0]


def split_and_rest(name: str) -> tuple[str, tuple[str, ...]]:
    """seg_train -> ('train', ('seg',)): the split that a name says, and its other words. ('', …)
    where it says none, or several."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    joined = re.sub(r"\b(hold|held|un)[\W_]+(out|labell?ed)", r"\1\2", spaced.replace("_", " "))
    words = [word for word in re.split(r"[^a-z]+", joined) if word]
    splits = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    rest = tuple(word for word in words if word not in SPLIT_OF)
    return (splits.pop() if len(splits) == 1 else ""), rest


def _folded(word: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", word).casefold().split())


def _bare(folded: str) -> str:
    """Without brackets, signs and blanks."""
    return re.sub(r"[\s_-]+", "", folded.strip(" _-<>()[]{}'\"#."))
