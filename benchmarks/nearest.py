"""The first stage over a million items, beside faiss.

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python benchmarks/nearest.py --peer .venv-peers/bin/python

Vectors of d = 64 in 2,000 clusters of unlike sizes, made up; the 100 nearest of one query
at a time, float32, on two cores. Each side is a process of its own; row by row they take
turns, over the same queries, and ratios are taken within a turn. An index of lists is
searched in as many as find 97 % of the 100 nearest, by either side's own lists, all of one
number; what is found is counted on queries that the choice has not seen. Without `--peer`
its rows are missing. The second table is what an index of this size takes: seconds to
train its lists, and memory.
"""

import argparse
import functools
import itertools
import sys
import time

import numpy as np
import turns

D, NEAREST, RECALL = 64, 100, 0.97
FLAT, LISTS = "exact", "lists"
FAISS_FLAT, FAISS_LISTS = "faiss, IndexFlatIP", "faiss, IndexIVFFlat"


def made_up(count: int, queries: int, clusters: int = 2000):
    """Unit vectors `[count, D]` and queries `[queries, D]` of the same clusters."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(clusters, D)).astype(np.float32)
    weight = draw.pareto(1.5, clusters) + 0.1
    of = draw.choice(clusters, count + queries, p=weight / weight.sum())
    noise = draw.normal(size=(count + queries, D)).astype(np.float32)
    vectors = centres[of] + 0.7 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:count], vectors[count:]


def halves(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries to choose how many lists are searched by, and those that are timed."""
    return queries[: len(queries) // 2], queries[len(queries) // 2 :]


def in_lists(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact answers that were found."""
    pairs = zip(found, exact, strict=True)
    return float(np.mean([len(set(one) & set(other)) for one, other in pairs])) / NEAREST


def each(search, queries):
    """One query after another, round and round: a call of no arguments."""
    turn = itertools.cycle(queries)
    return lambda: search(next(turn)[None])


def ours(args) -> dict:
    tf = turns.tensorflow()
    from tfrec_attn.serve.graph import nearest

    vectors, queries = made_up(args.items, args.queries)
    some, asked = halves(queries)
    exact = nearest.Exact(vectors)
    begun = time.perf_counter()
    lists = nearest.clustered(
        vectors, count=args.lists, recall=RECALL, queries=some, size=NEAREST
    )
    trained = time.perf_counter() - begun
    plain = lambda cosine, rows: cosine
    call = lambda index: tf.function(lambda query: index(query, plain, NEAREST)[1])
    searches = {FLAT: call(exact), LISTS: call(lists)}
    answers = lambda name: np.concatenate([searches[name](q[None]) for q in asked])
    return {name: each(search, asked) for name, search in searches.items()} | {
        "trained": lambda: trained,
        "probes": lambda: lists.probes,
        "found": lambda: in_lists(answers(LISTS), answers(FLAT)),
        "answers": lambda: answers(FLAT),
        "bytes": lambda: sum(v.numpy().nbytes for v in lists.variables),
    }


def theirs(args) -> dict:
    import faiss

    faiss.omp_set_num_threads(turns.CORES)
    vectors, queries = made_up(args.items, args.queries)
    some, asked = halves(queries)
    flat = faiss.IndexFlatIP(D)
    flat.add(vectors)
    begun = time.perf_counter()
    coarse = faiss.IndexFlatIP(D)
    lists = faiss.IndexIVFFlat(coarse, D, args.lists, faiss.METRIC_INNER_PRODUCT)
    lists.train(vectors)
    lists.add(vectors)
    trained = time.perf_counter() - begun
    search = lambda index: lambda query: index.search(query, NEAREST)[1]
    exact = search(flat)(some)
    low, high = 1, args.lists
    while low < high:
        lists.nprobe = (low + high) // 2
        enough = in_lists(search(lists)(some), exact) >= RECALL
        low, high = (low, lists.nprobe) if enough else (lists.nprobe + 1, high)
    lists.nprobe = low
    return {
        FAISS_FLAT: each(search(flat), asked),
        FAISS_LISTS: each(search(lists), asked),
    } | {
        "trained": lambda: trained,
        "probes": lambda: lists.nprobe,
        "found": lambda: in_lists(search(lists)(asked), search(flat)(asked)),
        "answers": lambda: search(flat)(asked),
    }


SIDES = {"ours": ours, "theirs": theirs}


def main(argv=None) -> int:
    """Prints the tables; 1 where the exact answers of the two sides differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--peer", help="Python of the environment with faiss")
    add("--turns", type=int, default=20)
    add("--items", type=int, default=1_000_000)
    add("--lists", type=int, default=2000)
    add("--queries", type=int, default=200)
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        turns.answer(functools.partial(SIDES[args.side], args))
        return 0
    given = [f"--{name}={getattr(args, name)}" for name in ("items", "lists", "queries")]
    asked = {"ours": turns.start(sys.executable, "--side", "ours", *given)}
    rows = [("ours", FLAT), ("ours", LISTS)]
    if args.peer:
        asked["theirs"] = turns.start(args.peer, "--side", "theirs", *given)
        rows += [("theirs", FAISS_FLAT), ("theirs", FAISS_LISTS)]
    spent = turns.in_turns(
        {row: functools.partial(asked[side], "time", row, 15) for side, row in rows},
        args.turns,
    )
    bases = [row for row in (FLAT, FAISS_FLAT, FAISS_LISTS) if row in spent]
    about = {side: {k: ask(k) for k in ("found", "probes")} for side, ask in asked.items()}
    known = {FLAT: "1", FAISS_FLAT: "1"}
    for side, row in rows:
        if row not in known:
            known[row] = "{found:.3f}, {probes} lists".format(**about[side])
    ratio = lambda row, base: turns.spread(spent[row] / spent[base])
    turns.table(
        ("median [quartiles]", "found", "ms", *(f"× {base}" for base in bases)),
        [
            (row, known[row], turns.spread(spent[row]), *(ratio(row, b) for b in bases))
            for row in spent
        ],
    )
    turns.table(
        ("index of lists", "trained in, s"),
        [(side, f"{ask('trained'):.0f}") for side, ask in asked.items()],
    )
    print(f"Ours takes {asked['ours']('bytes') / 2**20:.0f} MB.")
    if not args.peer:
        return 0
    answers = [np.sort(ask("answers"), 1) for ask in asked.values()]
    same = in_lists(*answers)
    print(f"The exact answers of both sides are the same in {same:.2%}.")
    return 0 if same > 0.999 else 1


if __name__ == "__main__":
    sys.exit(main())
