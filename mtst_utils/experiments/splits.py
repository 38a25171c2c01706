"""A split that does not leak: near duplicates and sentences of one document stay on the same side.

Taught in notebook 02, section 7; checks in data/README.md.
"""

import hashlib
import math
import re
from collections import Counter, defaultdict

import pandas as pd


def words_of(text):
    """The set of lower-case words of a text, without user names and links, for comparing texts."""
    text = text.lower()
    return frozenset(
        re.findall(r"[a-z0-9']+", re.sub(r"@\w+|https?://\S+|\brt\b|&\w+;", " ", text)) or [text]
    )


def near_duplicate_groups(texts, documents, threshold=0.8):
    """One group name per text: texts of one document, or whose word sets have a Jaccard similarity
    >= threshold, are together, and so is whatever is linked through them. A group is named after
    its first document.
    """
    documents = list(documents)
    parent = {document: document for document in documents}

    def root(document):
        while parent[document] != document:
            parent[document] = parent[parent[document]]
            document = parent[document]
        return document

    sets = [words_of(text) for text in texts]
    rarity = Counter(word for words in sets for word in words)
    sharing, same = defaultdict(list), {}
    for i, words in enumerate(sets):
        if words in same:
            parent[root(documents[i])] = root(same[words])
            continue
        same[words] = documents[i]
        # Texts this alike share one of the rarest words of each (prefix filter: at most (1 - t) of
        # them may differ).
        ranked = sorted(words, key=lambda word: (rarity[word], word))
        candidates = set()
        for word in ranked[: len(ranked) - math.ceil(threshold * len(ranked) - 1e-9) + 1]:
            candidates.update(sharing[word])
            sharing[word].append(i)
        for j in candidates:
            if len(words & sets[j]) >= threshold * len(words | sets[j]):
                a, b = root(documents[i]), root(documents[j])
                parent[b] = a
    names = {}
    return [names.setdefault(root(document), document) for document in documents]


def group_split(domains, groups, test=0.2, valid=0.1, salt=""):
    """ "train", "valid" or "test" for every row, whole groups at a time, the same shares in each
    domain.

    Groups come in the order of a hash of their names, so that the split depends on nothing but the
    data; with a salt, which is put before the names, it is another split. A group larger than 2 %
    of its domain (a family of contrived variants, say) stays in training, so that no test set leans
    on it.
    """
    rows = pd.DataFrame({"domain": list(domains), "group": list(groups)})
    sizes = rows.groupby("group")["domain"].agg(
        ["first", "size"]
    )  # a few groups reach into a second domain
    split = {}
    for _, part_sizes in sizes.groupby("first")["size"]:
        total, filled = part_sizes.sum(), {"test": 0, "valid": 0}
        for group, size in sorted(
            part_sizes.items(), key=lambda row: hashlib.sha256((salt + row[0]).encode()).digest()
        ):
            split[group] = "train"
            for part, share in (("test", test), ("valid", valid)):
                if filled[part] + size <= share * total and size <= 0.02 * total:
                    split[group] = part
                    filled[part] += size
                    break
    return rows["group"].map(split)
