"""The scorer's formulas in float64, one pair and one token at a time."""

import numpy as np


def unit(vector):
    return vector / max(np.linalg.norm(vector), 1e-12)


def softmax(logits):
    weights = np.exp(np.asarray(logits) - np.max(logits))
    return weights / weights.sum()


def softmax_score(user, item, user_mask, item_mask, focus):
    """One head, identity projections, uniform importances: user [n, d], item [m, d]."""
    q, k = user[user_mask], item[item_mask]
    if not len(q) or not len(k):
        return 0.0
    seen = [softmax([focus * (unit(x) @ unit(y)) for x in q]) @ q for y in k]
    return float(np.mean([unit(s) @ unit(y) for s, y in zip(seen, k, strict=True)]))


def article_score(user, item, user_mask, item_mask, normalizer):
    q, k = user[user_mask], item[item_mask]
    if not len(q) or not len(k):
        return 0.0
    a, b = (np.array([x @ x for x in tokens]) for tokens in (q, k))
    if normalizer == "softmax":
        a, b = softmax(a), softmax(b)
    a, b = np.sqrt(a), np.sqrt(b)
    n, m = len(q), len(k)
    attention = np.array(
        [[q[i] @ k[j] / (a[i] * b[j]) for j in range(m)] for i in range(n)]
    )
    q_tilde = [sum(attention[i, j] * q[i] for i in range(n)) for j in range(m)]
    k_tilde = [sum(attention[i, j] * k[j] for j in range(m)) for i in range(n)]
    total = 0.0
    for i in range(n):
        row = np.array([k_tilde[i] @ q_tilde[j] / (a[i] * b[j]) for j in range(m)])
        total += softmax(row) @ row
    return total / n
