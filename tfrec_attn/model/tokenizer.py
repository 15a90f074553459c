"""Text to BERT's WordPiece ids inside the graph: training and serving cannot differ.

Letters: B or N texts, m token ids a text, W words.
"""

import json
import logging
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

logger = logging.getLogger(__name__)

# BERT's limit is 100 characters a word and the op counts bytes: 100 characters of UTF-8
# never take more.
_MAX_WORD_BYTES = 400


class WordPiece(tf.Module):
    """Tokenizes as the BERT checkpoint in `folder` was trained to.

    Equal to transformers' `BertTokenizerFast` but for two things: a special token typed by
    a user ("[SEP]") is plain text here, so no text can break the frame of another; and a
    word of more than 100 characters is cut into pieces up to 400 bytes, where BERT
    gives `[UNK]` at once. (Each knows the scripts of its own year: characters that came to
    Unicode after 2016 may be split from their neighbours by one and not by the other.)

    Uses core and TF-Text ops only, and keeps its vocabulary in the graph: a SavedModel
    that calls it needs no file.

    Args:
      folder: Holds `vocab.txt` and, if the defaults of BERT (lower case) are not meant,
        `tokenizer_config.json`.

    Attributes:
      pad_id: Id that fills a row behind `[SEP]`; `ids != pad_id` is the mask.
      vocabulary: The pieces by id.
      vocab_size: Number of entries in the vocabulary.
    """

    def __init__(self, folder):
        super().__init__(name="wordpiece")
        folder = pathlib.Path(folder)
        settings = _read_settings(folder)
        vocabulary = _read_vocabulary(folder)
        special = _special_tokens(folder, settings, vocabulary)
        self.vocabulary = tuple(vocabulary)
        self.vocab_size = len(vocabulary)
        self.pad_id = vocabulary.index(special["pad_token"])
        self._cls_id = vocabulary.index(special["cls_token"])
        self._sep_id = vocabulary.index(special["sep_token"])
        self._lower = settings.get("do_lower_case", True)
        if "do_lower_case" not in settings:
            _warn_of_capitals(folder, vocabulary)
        # Null means: as the case is treated.
        strip = settings.get("strip_accents")
        self._strip_accents = self._lower if strip is None else strip
        self._pieces = tf_text.FastBertTokenizer(
            vocabulary,
            max_bytes_per_word=_MAX_WORD_BYTES,
            token_out_type=tf.int32,
            unknown_token=special["unk_token"],
            # Its own lower-casing also folds compatibility forms (full-width letters, "…",
            # ligatures), which BERT's does not: `_normalize` does that part.
            lower_case_nfd_strip_accents=False,
        )

    def __call__(self, texts, max_length):
        """Returns `[CLS] pieces [SEP] [PAD]…` of each text, and which texts were cut.

        Args:
          texts: `[B]` strings in UTF-8; bytes that are not are left out.
          max_length: m, a Python integer: room for `[CLS]`, `[SEP]` and one piece at least.

        Returns:
          `[B, m]` int32 ids and `[B]` bool, True where pieces were left out at the end.
        """
        texts = tf.convert_to_tensor(texts, tf.string)
        if texts.shape.rank != 1:
            raise ValueError(
                f"texts must have one dimension, the batch: got shape {texts.shape}. "
                "Flatten them first."
            )
        if max_length < 3:
            raise ValueError(
                f"max_length must be at least 3 ([CLS], piece, [SEP]): got {max_length}."
            )
        pieces = self._pieces.tokenize(self._normalize(texts))
        room = max_length - 2
        lengths = tf.cast(pieces.row_lengths(), tf.int32)
        body = pieces.to_tensor(default_value=self.pad_id, shape=[None, room])
        ids = tf.pad(body, [[0, 0], [1, 0]], constant_values=self._cls_id)
        ids = tf.pad(ids, [[0, 0], [0, 1]], constant_values=self.pad_id)
        end = tf.minimum(lengths, room)[:, None] + 1
        return tf.where(tf.range(max_length) == end, self._sep_id, ids), lengths > room

    def words(self, ids):
        """The words of texts: pieces joined, without the frame and punctuation.

        A text of nothing but punctuation keeps it.

        Args:
          ids: `[N, m]` from a call, on the host.

        Returns:
          `[N, m]` int, which word of its text a piece belongs to, -1 for none; and `[N, W]`
          strings, the words by place, empty behind the last.
        """
        texts = [self._words(row) for row in np.asarray(ids)]
        place = np.full(np.shape(ids), -1)
        names = np.full((len(texts), max(map(len, texts), default=0)), "", object)
        for row, words in enumerate(texts):
            for number, (name, pieces) in enumerate(words):
                names[row, number] = name
                place[row, pieces] = number
        return place, names.astype(str)

    def _words(self, ids):
        """The words of one text: name and where its pieces are."""
        words = []
        for at, piece_id in enumerate(ids):
            piece = self.vocabulary[piece_id]
            if piece_id in (self.pad_id, self._cls_id, self._sep_id):
                continue
            if piece.startswith("##") and words:
                words[-1] = (words[-1][0] + piece[2:], [*words[-1][1], at])
            else:
                words.append((piece, [at]))
        return [w for w in words if any(map(str.isalnum, w[0]))] or words

    def _normalize(self, texts):
        """BERT's cleaning, accents and case, in the order of the checkpoint's training."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
        # Control, format, private and replacement characters vanish; white space stays.
        texts = tf.strings.regex_replace(texts, r"[^\P{C}\t\n\r]|\x{FFFD}", "")
        if self._strip_accents:
            texts = tf_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, r"\p{Mn}", "")
        if self._lower:
            # ICU lower-cases by the machine's locale (a Turkish "I") and by position (a
            # final "Σ"); BERT does neither.
            texts = tf.strings.lower(tf.strings.regex_replace(texts, "Σ", "σ"))
            texts = tf.strings.lower(texts, encoding="utf-8")
        return texts


def _read_settings(folder):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.exists() else {}
    kind = settings.get("tokenizer_class", "BertTokenizer")
    if kind not in ("BertTokenizer", "BertTokenizerFast"):
        raise ValueError(
            f"{path}: tokenizer_class must be BertTokenizer or BertTokenizerFast, the only "
            f"kind that runs inside the graph: got {kind}. Choose a BERT checkpoint."
        )
    for name, needed in (("tokenize_chinese_chars", True), ("do_basic_tokenize", True)):
        if settings.get(name, needed) is not needed:
            raise ValueError(
                f"{path}: {name} must be true, the in-graph tokenizer has no other way: "
                f"got {settings[name]}. Choose another checkpoint."
            )
    return settings


def _read_vocabulary(folder):
    path = folder / "vocab.txt"
    if not path.exists():
        raise ValueError(
            f"{path} not found: a BERT folder holds its WordPiece vocabulary there, one "
            "piece a line. Save it with transformers' BertTokenizer.save_vocabulary."
        )
    # Not splitlines(): the vocabulary holds characters that it takes for line ends.
    pieces = path.read_text("utf-8").split("\n")
    return pieces[:-1] if pieces[-1] == "" else pieces


def _warn_of_capitals(folder, vocabulary):
    """Nothing else in a folder without settings says that a checkpoint is cased."""
    pieces = [piece for piece in vocabulary if not piece.startswith("[")]
    capital = [piece for piece in pieces if piece != piece.lower()]
    if capital:
        logger.warning(
            "%s: texts are lower-cased, and %d pieces of vocab.txt with capitals, as %r, "
            "are never used. If the checkpoint is cased, say so in tokenizer_config.json: "
            '{"do_lower_case": false}.',
            folder,
            len(capital),
            capital[0],
        )


def _special_tokens(folder, settings, vocabulary):
    special = {}
    for kind in ("pad", "unk", "cls", "sep"):
        token = settings.get(f"{kind}_token", f"[{kind.upper()}]")
        special[f"{kind}_token"] = token["content"] if isinstance(token, dict) else token
    for name, token in special.items():
        if token not in vocabulary:
            raise ValueError(
                f"{folder / 'vocab.txt'} must hold the {name} {token!r}: it has "
                f"{len(vocabulary)} pieces without it. Check tokenizer_config.json."
            )
    return special
