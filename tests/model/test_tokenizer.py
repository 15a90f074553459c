"""The in-graph WordPiece against transformers' BertTokenizerFast, and in a SavedModel."""

import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
import transformers

from tfrec_attn.model.tokenizer import WordPiece

TEXTS = [
    "",
    "   ",
    "Toy Story (1995). Animation, Children's, Comedy",
    "Cité des enfants perdus, La (1995)",
    "ÜBER-Ångström; Señor Œuvre ß ẞ Çà",
    "中文测试abc，推荐系统",
    "한국어 영화 추천 — 기생충 (2019)",
    "カタカナとひらがな が゛",
    "Ｆｕｌｌ－ｗｉｄｔｈ １２３",
    "👍🏽 emoji 🎬🍿",
    "ﬁre ﬂy … ½ ① Ⅷ",
    "ΟΔΟΣ Σίσυφος",
    "I İ ISTANBUL ıI",
    "a\tb\nc\rd\u00a0e\u3000f\u2028g",
    "a\x00b\x07c\u200bd\ufffde\ue000f\x85g",
    "don't stop—now “quoted” ‘too’",
    "हिन्दी العربية ٣ עברית ไทย",
    "x" * 100 + " tail",
    "word " * 40,
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_folder(path, pieces, **settings):
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("".join(f"{p}\n" for p in SPECIAL + pieces), "utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return path


def characters(texts):
    """Pieces that show each character: alone, as a continuation, and some longer ones."""
    forms = {
        c for t in texts for form in ("NFC", "NFD") for c in unicodedata.normalize(form, t)
    }
    forms |= {c for f in forms for c in f.lower()}
    single = sorted(
        c for c in forms if not c.isspace() and unicodedata.category(c)[0] != "C"
    )
    return single + [f"##{c}" for c in single] + ["word", "story", "##ory", "##mation"]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "bert", characters(TEXTS))


@pytest.mark.parametrize("strip", [None, True, False])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("length", [7, 64])
def test_equals_the_checkpoints_own_tokenizer(tmp_path, lower, strip, length):
    settings = {"do_lower_case": lower, "strip_accents": strip}
    folder = write_folder(tmp_path / "bert", characters(TEXTS), **settings)
    theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    whole = theirs(TEXTS)["input_ids"]
    want = theirs(TEXTS, max_length=length, truncation=True, padding="max_length")
    ids, truncated = WordPiece(folder)(TEXTS, length)
    np.testing.assert_array_equal(ids, want["input_ids"])
    np.testing.assert_array_equal(truncated, [len(row) > length for row in whole])
    assert ids.dtype == tf.int32
    assert any(truncated)


def test_every_old_character_is_treated_as_in_training(tmp_path):
    """The two know scripts up to different years; what never changed must be equal."""
    old = unicodedata.ucd_3_2_0.category
    points = [chr(p) for p in range(0x20, 0x10000) if not 0xD800 <= p < 0xE000]
    texts = [f"a{c}B" for c in points[::3] if old(c) == unicodedata.category(c) != "Cn"]
    assert len(texts) > 15_000
    folder = write_folder(tmp_path / "bert", characters(texts))
    theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    ids, _ = WordPiece(folder)(texts, 12)
    want = theirs(texts, max_length=12, truncation=True, padding="max_length")["input_ids"]
    assert [
        t for t, a, b in zip(texts, ids.numpy().tolist(), want, strict=True) if a != b
    ] == []


def test_a_typed_special_token_is_text(folder):
    """The first known difference: no text can end another's frame."""
    tokenizer = WordPiece(folder)
    ids, _ = tokenizer(["a[SEP]b"], 12)
    assert ids.numpy()[0].tolist().count(SPECIAL.index("[SEP]")) == 1
    # A space between changes nothing: the brackets are punctuation.
    np.testing.assert_array_equal(ids, tokenizer(["a [ sep ] b"], 12)[0])


def test_a_word_past_100_characters_is_cut_not_dropped(folder):
    """The second known difference."""
    ids, _ = WordPiece(folder)(["x" * 101, "x" * 401], 110)
    assert (ids.numpy()[0] != 0).sum() == 103
    assert ids.numpy()[1][:3].tolist() == [2, SPECIAL.index("[UNK]"), 3]


def test_bytes_that_are_no_text_are_left_out(folder):
    tokenizer = WordPiece(folder)
    broken, _ = tokenizer(tf.constant([b"\xff\xfesto\xc3ry"]), 9)
    np.testing.assert_array_equal(broken, tokenizer(["story"], 9)[0])


def test_the_machines_language_does_not_matter(folder):
    program = (
        "import sys; from tfrec_attn.model.tokenizer import WordPiece;"
        "print(WordPiece(sys.argv[1])(['INDIANA'], 9)[0].numpy().tolist())"
    )
    environment = {**os.environ, "LC_ALL": "tr_TR.UTF-8"}
    out = subprocess.run(
        [sys.executable, "-c", program, folder],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.strip() == str(WordPiece(folder)(["indiana"], 9)[0].numpy().tolist())


def test_lives_in_a_saved_model_that_was_moved(tmp_path, folder):
    class Served(tf.Module):
        def __init__(self):
            super().__init__()
            self.tokenizer = WordPiece(folder)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def tokens(self, text):
            ids, truncated = self.tokenizer(text, 16)
            return {"ids": ids, "truncated": truncated}

    served = Served()
    want = served.tokens(tf.constant(TEXTS))
    tf.saved_model.save(served, tmp_path / "a", signatures=served.tokens)
    (tmp_path / "a").rename(tmp_path / "b")
    (folder / "vocab.txt").unlink()
    loaded = tf.saved_model.load(tmp_path / "b")
    got = loaded.signatures["serving_default"](text=tf.constant(TEXTS))
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    empty = loaded.signatures["serving_default"](text=tf.constant([], tf.string))
    assert empty["ids"].shape == (0, 16)


def test_special_tokens_are_the_checkpoints(tmp_path):
    folder = write_folder(tmp_path / "bert", ["<s>", "a"], cls_token={"content": "<s>"})
    tokenizer = WordPiece(folder)
    assert tokenizer(["a"], 4)[0].numpy().tolist() == [[5, 6, 3, 0]]
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (0, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tokenizer_class": "BertJapaneseTokenizer"},
            "tokenizer_class must be BertTok.*Japan",
        ),
        (
            {"tokenize_chinese_chars": False},
            "tokenize_chinese_chars must be true.*got False",
        ),
        (
            {"sep_token": "</s>"},
            "vocab.txt must hold the sep_token '</s>': it has 6 pieces",
        ),
    ],
)
def test_a_setting_it_cannot_follow_is_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        WordPiece(write_folder(tmp_path / "bert", ["a"], **settings))


def test_wrong_calls_are_named(tmp_path, folder):
    with pytest.raises(ValueError, match=r"one dimension, the batch: got shape \(1, 1\)"):
        WordPiece(folder)([["a"]], 9)
    with pytest.raises(ValueError, match=r"max_length must be at least 3.*: got 2"):
        WordPiece(folder)(["a"], 2)
    with pytest.raises(ValueError, match=r"vocab.txt not found"):
        WordPiece(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Dramas, (1995)!", ["dramas", "1995"]),
        ("dr. a", ["dr", "a"]),
        # A word of which one piece is a letter is a word.
        ("°a a°", ["°a", "a°"]),
        ("zz a", ["[UNK]", "a"]),
        ("?!", ["?", "!"]),
        ("", []),
        ("  ", []),
    ],
)
def test_words_are_pieces_joined_without_frame_and_punctuation(tmp_path, text, words):
    pieces = ["dr", "##ama", "##s", "19", "##95", "a", "##a", "°", "##°", *",().!?"]
    tokenizer = WordPiece(write_folder(tmp_path, pieces))
    other = "dr dr dr dr"
    ids = tokenizer(tf.constant([text, other]), 11)[0].numpy()
    place, names = tokenizer.words(ids)
    assert [name for name in names[0] if name] == words
    assert names[1].tolist() == ["dr"] * 4
    for number, word in enumerate(words):
        found = [tokenizer.vocabulary[i] for i in ids[0][place[0] == number]]
        assert "".join(piece.removeprefix("##") for piece in found) == word
    assert (place[ids == tokenizer.pad_id] == -1).all()
    assert place[1].tolist() == [-1, 0, 1, 2, 3] + [-1] * 6


@pytest.mark.parametrize(
    ("pieces", "settings", "warned"),
    [
        (["word", "[unused1]"], None, False),
        (["word", "Word"], None, True),
        (["word", "Word"], {"do_lower_case": False}, False),
        (["word", "Word"], {"do_lower_case": True}, False),
    ],
)
def test_capitals_that_are_never_used_are_told(tmp_path, caplog, pieces, settings, warned):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *pieces]) + "\n")
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    WordPiece(tmp_path)
    assert ("1 pieces of vocab.txt with capitals, as 'Word'" in caplog.text) == warned
