"""Rules before the decoder that put tokens together, in plain Python and float64, from their definitions.

Every function says which slots are kept, ascending, and the state of each of them.
"""

from __future__ import annotations

import math

import numpy as np

from tests.oracles.encoder_picks import best, cosine, f64

Merged = tuple[list[int], np.ndarray]


def visionzip(
    attention: np.ndarray,
    keys: np.ndarray,
    hidden: np.ndarray,
    keep: int,
    *,
    class_state: np.ndarray | None = None,
    contextual: float = 10 / 64,
) -> Merged:
    """`class_state` is None where there is no class token, or it is not to be fed."""
    attention, keys, hidden = f64(attention), f64(keys), f64(hidden)
    count = len(hidden)
    total = [sum(attention[h, i] for h in range(len(attention))) for i in range(count)]
    number = math.floor(keep * contextual)
    dominant = keep - number - (class_state is not None)
    patches = sorted(best(range(count), total, dominant))
    rest = [i for i in range(count) if i not in patches]
    targets = rest[:: max(1, len(rest) // number)][:number] if number else []
    mean_keys = [keys[:, i].mean(axis=0) for i in range(count)]
    assigned: dict[int, list[int]] = {t: [] for t in targets}
    for i in rest:
        if targets and i not in targets:
            likeness = [cosine(mean_keys[i], mean_keys[t]) for t in targets]
            assigned[targets[best(range(len(targets)), likeness, 1)[0]]].append(i)
    contexts = [hidden[t] + (hidden[members].mean(axis=0) if members else 0.0) for t, members in assigned.items()]
    slots, states = patches + targets, [hidden[i] for i in patches] + contexts
    if class_state is not None:
        slots = slots + best([i for i in rest if i not in targets], total, 1)
        states = [f64(class_state), *states]
    return sorted(slots), np.stack(states)


def quantile(values: list[float], share: float) -> float:
    """Linear between the two neighbours in order."""
    order = sorted(values)
    place = share * (len(order) - 1)
    low = math.floor(place)
    high = min(low + 1, len(order) - 1)
    return order[low] + (place - low) * (order[high] - order[low])


def prumerge(
    query: np.ndarray, keys: np.ndarray, hidden: np.ndarray, keep: int, *, plus: bool = False, neighbours: int = 32
) -> Merged:
    """`query` is (H, d), or (N, H, d) where every token has that of its own picture."""
    query, keys, hidden = f64(query), f64(keys), f64(hidden)
    count = len(hidden)
    joined = [keys[:, i].reshape(-1) for i in range(count)]
    queries = [(query if query.ndim == 2 else query[i]).reshape(-1) for i in range(count)]
    logits = [float(q @ k) * len(k) ** -0.5 for q, k in zip(queries, joined, strict=True)]
    powers = [math.exp(x - max(logits)) for x in logits]
    seen = [p / sum(powers) for p in powers]

    q1, q3 = quantile(seen, 0.25), quantile(seen, 0.75)
    above = [i for i in range(count) if seen[i] > q3 + 1.5 * (q3 - q1)]
    outliers = best(above, seen, len(above)) or best(range(count), seen, 1)
    chosen = list(outliers)
    if plus:
        step = int(1 / (len(outliers) / count))
        chosen += [i for i in range(0, count, max(1, int(step / 3))) if i not in outliers]
    chosen = chosen[: keep - 1]
    dropped = [i for i in range(count) if i not in chosen]
    extra = best(dropped, seen, 1)[0]

    states = {extra: sum(seen[j] * hidden[j] for j in dropped)}
    for i in chosen:
        likeness = [cosine(joined[i], joined[j]) for j in range(count)]
        near = best([j for j in range(count) if j != i], likeness, neighbours)
        states[i] = hidden[i] + sum((seen[j] * hidden[j] for j in near), np.zeros(hidden.shape[1]))
    slots = sorted(states)
    return slots, np.stack([states[i] for i in slots])


def tome(features: np.ndarray, hidden: np.ndarray, keep: int) -> tuple[list[int], np.ndarray, list[float]]:
    """With the sizes of the slots. Some of the first half are left in the last round only, so that order is the same
    whether they then stand before the second half or among it.
    """
    look = {i: f64(features)[i] for i in range(len(features))}
    state = {i: f64(hidden)[i] for i in range(len(features))}
    size = dict.fromkeys(look, 1.0)
    line = list(look)
    while len(line) > keep:
        a, b = line[0::2], line[1::2]
        edge: dict[int, tuple[float, int]] = {}
        for i in a:
            likeness = [cosine(look[i], look[j]) for j in b]
            partner = best(range(len(b)), likeness, 1)[0]
            edge[i] = (likeness[partner], b[partner])
        merged = sorted(a, key=lambda i: (-edge[i][0], a.index(i)))[: min(len(line) - keep, len(a))]
        for j in b:
            group = [j, *(i for i in merged if edge[i][1] == j)]
            total = sum(size[i] for i in group)
            for what in (look, state):
                what[j] = sum(size[i] * what[i] for i in group) / total
            size[j] = total
        line = sorted({*line} - {*merged})
    return line, np.stack([state[i] for i in line]), [size[i] for i in line]
