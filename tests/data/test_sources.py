"""Both forms of MovieLens-100K, made small here, against rows written by hand."""

import csv
import hashlib

import pytest

from tfrec_attn import assets
from tfrec_attn.data import sources
from tfrec_attn.origins import ASSETS, MOVIELENS

# id, title as GroupLens prints it, then RecBole's title, year and genres; then what must
# come out of both: title, year, genres.
MOVIES = [
    ("1", "Toy Story (1995)", "Toy Story", "1995", "Animation Children's Comedy",
     "Toy Story", "1995", "Animation|Children's|Comedy"),
    ("12", "Usual Suspects, The (1995)", "Usual Suspects, The", "1995", "Crime Thriller",
     "Usual Suspects, The", "1995", "Crime|Thriller"),
    ("195", "Alien (1979)", "Alien", "1979", "Film-Noir Sci-Fi",
     "Alien", "1979", "Film-Noir|Sci-Fi"),
    ("267", "unknown", "unkonwn", "unkonwn", "unknown", "unknown", "", ""),
    ("543", "Misérables, Les (1995)", "Misérables, Les", "1995", "Drama",
     "Misérables, Les", "1995", "Drama"),
    ("1201", "Shadow and Light (1996) ", "Shadow and Light", "1996", "Western",
     "Shadow and Light", "1996", "Western"),
    ("1412", "Land Before Time III (1995) (V)", "Land Before Time III (1995)", "V",
     "Action", "Land Before Time III", "1995", "Action"),
    ("1020", "Die xue (Killer, The) (1989)", "Die xue (Killer, The)", "1989", "Action War",
     "Die xue (Killer, The)", "1989", "Action|War"),
    ("1373", "Good Morning (1971)", "Good Morning", "1971", "unknown",
     "Good Morning", "1971", ""),
]  # fmt: skip
# The order of the flags as GroupLens's u.genre numbers them.
GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
)
USERS = [("1", "24", "M", "technician", "05201"), ("2", "53", "F", "other", "T8H1N")]
EVENTS = [("196", "242", "3", "881250949"), ("186", "302", "3", "891717742")]


def grouplens(folder):
    """Writes u.item in Latin-1 with 19 flags, u.user and u.data without heads."""
    folder.mkdir()
    lines = []
    for item, printed, _, _, genres, *_ in MOVIES:
        flags = [str(int(genre in genres.split())) for genre in GENRES.split()]
        lines.append("|".join([item, printed, "01-Jan-1995", "", "http://x", *flags]))
    (folder / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")
    (folder / "u.user").write_text("".join("|".join(row) + "\n" for row in USERS))
    (folder / "u.data").write_text("".join("\t".join(row) + "\n" for row in EVENTS))
    return folder


def recbole(folder):
    folder.mkdir()
    tables = {
        "item": [("item_id:token", "movie_title:token_seq", "release_year:token", "class")],
        "user": [("user_id:token", "age:token", "gender:token", "occupation", "zip_code")],
        "inter": [("user_id:token", "item_id:token", "rating:float", "timestamp:float")],
    }
    tables["item"] += [(item, *row[1:4]) for item, *row in MOVIES]
    tables["user"] += USERS
    tables["inter"] += EVENTS
    for name, rows in tables.items():
        text = "".join("\t".join(row) + "\n" for row in rows)
        (folder / f"ml-100k.{name}").write_text(text, encoding="utf-8")
    return folder


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def sha256(rows, separator):
    text = "".join(separator.join(row) + "\n" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("form", [grouplens, recbole])
def test_both_forms_give_the_same_tables(tmp_path, form):
    sources.write_movielens(form(tmp_path / "asset"), tmp_path / "tables")
    items = [(movie[0], *movie[5:]) for movie in MOVIES]
    assert read(tmp_path / "tables/items.csv") == [
        ("item_id", "title", "year", "genres"),
        *items,
    ]
    assert read(tmp_path / "tables/users.csv") == [
        ("user_id", "age", "gender", "occupation", "zip_code"),
        *USERS,
    ]
    assert read(tmp_path / "tables/interactions.csv") == [
        ("user_id", "item_id", "rating", "timestamp"),
        *EVENTS,
    ]


def test_lines_end_with_a_line_feed_on_every_platform(tmp_path):
    sources.write_movielens(recbole(tmp_path / "asset"), tmp_path / "tables")
    assert b"\r" not in (tmp_path / "tables/items.csv").read_bytes()


def test_a_broken_asset_leaves_what_was_there(tmp_path):
    asset = grouplens(tmp_path / "asset")
    sources.write_movielens(asset, tmp_path / "tables")
    before = (tmp_path / "tables/items.csv").read_bytes()
    (asset / "u.item").write_text("1|Toy Story (1995)|01-Jan-1995||http://x|0|1\n")
    with pytest.raises(ValueError, match=r"u\.item needs 19 flags of 0 or 1"):
        sources.write_movielens(asset, tmp_path / "tables")
    assert (tmp_path / "tables/items.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asset", "tables"]


def test_tables_are_written_once_and_again_when_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("TFREC_ATTN_CACHE", str(tmp_path))
    written = []
    monkeypatch.setattr(assets, "fetch", lambda name: name)

    def write(asset, folder):
        written.append((asset, folder))
        folder.mkdir(parents=True, exist_ok=True)
        for name, (size, _) in sources.TABLES.items():
            (folder / name).write_bytes(b"x" * size)

    monkeypatch.setattr(sources, "write_movielens", write)
    folder = sources.movielens_100k()
    assert sources.movielens_100k() == folder
    assert written == [(MOVIELENS, folder)]
    (folder / "users.csv").write_bytes(b"half")
    sources.movielens_100k()
    assert len(written) == 2


def test_the_real_asset():
    """Fetches it where it is not cached; either form must give the bytes of `TABLES`."""
    folder = sources.movielens_100k()
    assert assets.wrong_files(folder, sources.TABLES, checksums=True) == []
    events = read(folder / "interactions.csv")
    assert events[1:3] == EVENTS
    assert len(events) == 1 + 100_000
    items = read(folder / "items.csv")
    assert len(items) == 1 + 1682
    assert items[1412][1:3] == (
        "Land Before Time III: The Time of the Great Giving",
        "1995",
    )
    assert [item for item in items if not item[2]] == [("267", "unknown", "", "")]
    assert {genre for item in items[1:] for genre in item[3].split("|") if genre} == set(
        sources.GENRES
    )
    # Whichever form was fetched, these are GroupLens's rows in GroupLens's order.
    (_, grouplens_files), _ = ASSETS[MOVIELENS]
    assert sha256(events[1:], "\t") == grouplens_files["u.data"][1]
    assert sha256(read(folder / "users.csv")[1:], "|") == grouplens_files["u.user"][1]
