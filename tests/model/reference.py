"""The scorer's formulas in float64: one pair, one head and one token at a time.

Written from the definitions, with loops and none of the package's code, so that the two
cannot share a mistake.
"""

import numpy as np


def unit(vector):
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def softmax(logits):
    weights = np.exp(np.asarray(logits) - np.max(logits))
    return weights / weights.sum()


def softmax_pair(
    user, item, *, weights=None, heads=1, focus=1.0, scale=1.0, bidirectional=False
):
    """All quantities of one user `[n, d]` and one item `[m, d]`, real tokens only.

    `weights` holds the layer's projections `[d, h·e]` and importances `[d, h]` by name.
    """
    n, m, d = len(user), len(item), user.shape[1]
    weights = weights or {}
    kernel = lambda name: weights.get(name, np.eye(d))
    importance = lambda name: weights.get(name, np.zeros((d, heads)))
    width = kernel("user_query").shape[1] // heads
    found = {
        "A": np.zeros((heads, n, m)),
        "Q_tilde": np.zeros((heads, m, width)),
        "s": np.zeros((heads, m)),
        "omega": np.zeros((heads, m)),
        "A_item": np.zeros((heads, n, m)),
        "K_tilde": np.zeros((heads, n, width)),
        "s_user": np.zeros((heads, n)),
        "omega_user": np.zeros((heads, n)),
    }
    pairs = np.zeros((heads, n, m))
    rms = lambda x: x / np.sqrt(np.mean(x**2))
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        project = lambda name, x, part=part: x @ kernel(name)[:, part]
        q = [unit(project("user_query", x)) for x in user]
        k = [unit(project("item_key", x)) for x in item]
        v = [project("user_value", x) for x in user]
        w = [project("item_value", x) for x in item]
        logit = lambda name, x, h=h: rms(x) @ importance(name)[:, h]
        omega = softmax([logit("item_importance", x) for x in item])
        for j in range(m):
            seen_by = softmax(
                [focus * q[i] @ k[j] + logit("user_importance", user[i]) for i in range(n)]
            )
            seen = sum(seen_by[i] * v[i] for i in range(n))
            found["A"][h, :, j], found["Q_tilde"][h, j] = seen_by, seen
            found["s"][h, j] = unit(seen) @ unit(w[j])
            found["omega"][h, j] = omega[j]
            for i in range(n):
                share = seen_by[i] * v[i] / np.linalg.norm(seen)
                pairs[h, i, j] += omega[j] * share @ unit(w[j])
        if not bidirectional:
            continue
        omega = softmax([logit("user_importance_back", x) for x in user])
        for i in range(n):
            back = [logit("item_importance_back", x) for x in item]
            seen_by = softmax([focus * q[i] @ k[j] + back[j] for j in range(m)])
            seen = sum(seen_by[j] * w[j] for j in range(m))
            found["A_item"][h, i], found["K_tilde"][h, i] = seen_by, seen
            found["s_user"][h, i] = unit(seen) @ unit(v[i])
            found["omega_user"][h, i] = omega[i]
            for j in range(m):
                share = seen_by[j] * w[j] / np.linalg.norm(seen)
                pairs[h, i, j] += omega[i] * share @ unit(v[i])
    scale = scale / heads / (2 if bidirectional else 1)
    found["contributions"] = scale * found["omega"] * found["s"]
    found["user_contributions"] = scale * found["omega_user"] * found["s_user"]
    found["pair_contributions"] = scale * pairs.sum(0)
    found["score"] = found["contributions"].sum() + found["user_contributions"].sum()
    if not bidirectional:
        for name in ("A_item", "K_tilde", "s_user", "omega_user", "user_contributions"):
            del found[name]
    return found


def article_pair(user, item, *, normalizer="l2"):
    """The article's quantities of one user `[n, d]` and one item `[m, d]`."""
    n, m, d = len(user), len(item), user.shape[1]
    a, b = (np.array([x @ x for x in tokens]) for tokens in (user, item))
    if normalizer == "softmax":
        a, b = softmax(a), softmax(b)
    a, b = np.sqrt(a), np.sqrt(b)
    attention, similarity, r = np.zeros((n, m)), np.zeros((n, m)), np.zeros((n, m))
    for i, j in np.ndindex(n, m):
        attention[i, j] = user[i] @ item[j] / (a[i] * b[j])
    q_tilde = np.array([sum(attention[i, j] * user[i] for i in range(n)) for j in range(m)])
    k_tilde = np.array([sum(attention[i, j] * item[j] for j in range(m)) for i in range(n)])
    for i, j in np.ndindex(n, m):
        similarity[i, j] = k_tilde[i] @ q_tilde[j] / (a[i] * b[j])
    for i in range(n):
        r[i] = softmax(similarity[i])
    final = np.zeros((d, m))
    for x, j in np.ndindex(d, m):
        final[x, j] = sum(user[i, x] * r[i, j] for i in range(n))
    pairs = r * similarity / n
    return {
        "A": attention,
        "Q_tilde": q_tilde,
        "K_tilde": k_tilde,
        "S": similarity,
        "R": r,
        "F": final,
        "contributions": pairs.sum(0),
        "pair_contributions": pairs,
        "score": pairs.sum(),
    }
