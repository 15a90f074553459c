"""The served graph: raw requests to answers, with only ops that TF Serving has.

Letters: B users of a request, C candidates, K answers, I items, n user tokens, m item
tokens, d width.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfrec_attn.model.towers import latest, masked_mean
from tfrec_attn.serve.graph.conditions import Attributes, Rules
from tfrec_attn.serve.graph.history import Histories
from tfrec_attn.serve.graph.index import Index
from tfrec_attn.serve.graph.lookup import Columns, Lookup, nothing, prefer

# Items whose tokens are named at a time.
BLOCK = 4096


class Served(tf.Module):
    """What is exported: a method a signature.

    Args:
      index: Over all items.
      items, users: Catalogs: ids, texts, columns and features by row.
      words: `[I, W]` the words that the text tokens of an item stand for.
      user_features: Arrays by row of `users`, texts encoded.
      history: Of each user the events known at the export: `row_lengths` `[users]` and flat
        `item`, `feedback`, `time`, oldest first.
      length: Events of a history that the model reads.
      max_k: Most answers to one request.
      encoder: Tokenizer and BERT, or None for a model without text.
      attributes: Catalog of the columns that requests choose items by; None for none.
      offered: `[I]` bool, what may be recommended; all by default.
      diverse: Whether requests may ask for lists of unlike items.
    """

    def __init__(
        self,
        index: Index,
        *,
        items,
        users,
        words: np.ndarray,
        user_features: Mapping[str, np.ndarray],
        history: Mapping[str, np.ndarray],
        length: int,
        max_k: int,
        encoder=None,
        attributes=None,
        offered: np.ndarray | None = None,
        diverse: bool = False,
    ):
        super().__init__(name="served")
        self.index, self.encoder, self.max_k = index, encoder, min(max_k, len(items))
        self.item_columns = Columns(items.columns, "item")
        self.user_columns = Columns(users.columns, "user")
        fixed = lambda value, name: tf.Variable(value, trainable=False, name=name)
        self.item_ids = fixed(np.append(items.ids, "").astype(str), "item_ids")
        self.item_texts = fixed(np.append(items.texts, "").astype(str), "item_texts")
        self.item_row = Lookup(items.ids, name="item_row")
        self.user_row = Lookup(users.ids, name="user_row")
        # One more row: what is known of a user nobody has seen.
        self.nobody = len(users)
        self.profile = {
            name: fixed(np.concatenate([value, nothing(value)]), f"user_{name}")
            for name, value in user_features.items()
        }
        self.attributes = Attributes(attributes) if attributes is not None else None
        everything = np.ones(len(items), bool)
        self.offered = fixed(everything if offered is None else offered, "item_offered")
        self.diverse = diverse
        self.item_token = fixed(self._item_token_names(items, words), "item_token")
        self.histories = Histories(self.item_row, len(items), **history, length=length)

    def user_specs(self) -> dict[str, tf.TensorSpec]:
        """The inputs that describe users, by name."""
        spec = lambda shape, dtype, name: tf.TensorSpec(shape, dtype, name)
        specs = {
            "user_id": spec([None], tf.string, "user_id"),
            "history": spec([None, None], tf.string, "history"),
            "history_feedback": spec([None, None], tf.string, "history_feedback"),
            "history_time": spec([None, None], tf.int64, "history_time"),
            "time": spec([None], tf.int64, "time"),
        }
        return specs | {n: spec([None], tf.string, n) for n in self.user_columns.names}

    def rule_specs(self) -> dict[str, tf.TensorSpec]:
        """The inputs that say which items are wanted, by name."""
        spec = lambda dtype, name, *shape: tf.TensorSpec([None, *shape], dtype, name)
        specs = {"k": spec(tf.int32, "k")}
        lists = ["exclude", "candidates"]
        if self.attributes is not None:
            lists += ["require", "forbid", "boost"]
            specs["boost_by"] = spec(tf.float32, "boost_by", None)
        if self.diverse:
            specs["diversity"] = spec(tf.float32, "diversity")
        return specs | {name: spec(tf.string, name, None) for name in lists}

    def recommend(self, **request):
        """`serving_default`: the best items, those of the history left out."""
        user, about = self._user(request)
        count, rules = self.histories.items, self._rules(request, about["known_items"])
        k = tf.clip_by_value(request["k"], 0, self.max_k)
        rows, scores, valid = self.index.search(
            user, rules, tf.reduce_max(k), request.get("diversity")
        )
        valid &= tf.range(tf.shape(rows)[1])[None] < k[:, None]
        rows = tf.where(valid, rows, count)
        return {
            "item_id": tf.gather(self.item_ids, rows),
            "score": tf.where(valid, scores, tf.zeros_like(scores)),
            "item_text": tf.gather(self.item_texts, rows),
            "valid": valid,
            "known_user": about["known_user"],
            "unknown_history": about["unknown_history"],
            "truncated_history": about["truncated_history"],
        }

    def _rules(self, request, known_items) -> Rules:
        batch = tf.size(request["user_id"])
        marked = lambda name: self.histories.marked(self.item_row(request[name]), batch)
        everything = tf.reduce_all(request["candidates"] == "", -1, keepdims=True)
        allowed = (everything | marked("candidates")) & self.offered
        allowed &= ~(marked("exclude") | known_items)
        if self.attributes is None:
            return Rules(allowed)
        read = lambda name: self.attributes.read(name, request[name])
        boost, by = read("boost"), request["boost_by"]
        # One "not given" may stand for a whole row.
        by = tf.broadcast_to(by, tf.shape(boost.column))
        return Rules(allowed, self.attributes, read("require"), read("forbid"), boost, by)

    def score(self, **request):
        """`score`: the ranking score of named items."""
        user, about = self._user(request)
        rows = self.item_row(request["candidates"])
        scores = self.index.score(user, tf.maximum(rows, 0))
        return {
            "score": tf.where(rows >= 0, scores, tf.zeros_like(scores)),
            "known_item": rows >= 0,
            "known_user": about["known_user"],
        }

    def embed_user(self, **request):
        """`embed_user`: the pooled unit vector, to search an index of one's own."""
        user, about = self._user(request)
        return {"embedding": user.query, "known_user": about["known_user"]}

    def embed_item(self, **request):
        """`embed_item`: the pooled unit vector of items the model has never seen."""
        features = self.item_columns.parse(request)
        truncated = tf.zeros(tf.shape(next(iter(request.values())))[:1], tf.bool)
        if self.encoder is not None:
            text, truncated = self.encoder(request["text"])
            features |= text
        tower = self.index.model.item_tower
        return {"embedding": tower.pool(tower.vector(features)), "truncated": truncated}

    def explain(self, **request):
        """`explain`: what each token of one item adds to its score for one user."""
        user, about = self._user(request)
        row = self.item_row(request["item"])
        at = tf.maximum(row, 0)
        known = tf.cast(row >= 0, tf.float32)
        score, pairs, attention = self.index.explain(user, at)
        score, pairs = score * known, pairs * known[:, None, None]
        return {
            "score": score,
            "retrieval_contribution": score - tf.reduce_sum(pairs, (1, 2)),
            "item_contributions": tf.reduce_sum(pairs, 1),
            "user_contributions": tf.reduce_sum(pairs, 2),
            "attention": attention * known[:, None, None],
            "item_token": tf.where((row >= 0)[:, None], tf.gather(self.item_token, at), ""),
            "user_token": self._user_token_names(about, user.mask),
            "known_item": row >= 0,
            "known_user": about["known_user"],
        }

    def _item_token_names(self, items, words) -> tf.Tensor:
        """`[I, m]`: what each token of each item stands for, empty at padding."""
        tower, features = self.index.model.item_tower, self.index.model.items
        found = []
        for rows in np.split(np.arange(len(items)), range(BLOCK, len(items), BLOCK)):
            text = np.where(words[rows] == "", "", np.char.add("text=", words[rows]))
            column = lambda name, at=rows: tf.constant(
                items.features[name][at] if name in items.features else at
            )
            names = [
                text
                if name == "text"
                else self.item_columns.token_names(name, column(name))
                for name in tower.features.encoders
            ]
            _, mask = tower.features(features.rows(rows))
            names = tf.gather(tf.concat(names, 1), tower.places(mask), batch_dims=1)
            frame = np.tile(["item", "id"], (len(rows), 1))
            found.append(tf.concat([frame, names], 1))
        return tf.where(self.index.mask, tf.concat(found, 0), "")

    def _user_token_names(self, about, mask):
        history = about["events"]["history"]
        names, batch = [], tf.shape(history)[0]
        features = self.index.model.user_tower.features
        for name in features.encoders if features is not None else ():
            names.append(self.user_columns.token_names(name, about["profile"][name]))
        names.append(tf.fill([batch, 1], "user"))
        # The events stand at the end, the latest last; see `UserTokens`.
        length = self.index.model.user_tokens.length
        rows, _ = latest(history, about["events"]["seen"], length)
        ids = tf.gather(self.item_ids, tf.maximum(rows, 0))
        names.append(tf.strings.join(["history=", ids]))
        return tf.where(mask, tf.concat(names, 1), "")

    def _user(self, request):
        """The state of a request's users, and what was known of them."""
        row = self.user_row(request["user_id"])
        row_or_nobody = tf.where(row >= 0, row, self.nobody)
        profile = {
            name: tf.gather(value, row_or_nobody) for name, value in self.profile.items()
        }
        if self.index.model.user_tower.features is not None:
            for name, value in self.user_columns.parse(request).items():
                given = request[f"user_{name}"] != ""
                profile[name] = prefer(value, profile[name], given)
        events, known_items, about = self.histories(request, row_or_nobody)
        about |= {"known_user": row >= 0, "known_items": known_items}
        about |= {"profile": profile, "events": events}
        return self.index.model.encode_users(profile, self.index, events), about


class TextEncoder(tf.Module):
    """Texts to the features of `towers.FeatureTokens`, tokenizer and BERT in the graph.

    Args:
      tokenizer: `WordPiece`.
      bert: Token ids to hidden states.
      max_length: Tokens that are read of a text.
    """

    def __init__(self, tokenizer, bert, max_length: int):
        super().__init__(name="text_encoder")
        self.tokenizer, self.max_length = tokenizer, max_length
        self.weights = list(bert.variables)
        # As in `Index`: Keras would add traces of its own for what it tracks.
        self._bert = lambda ids: bert(ids)

    def __call__(self, texts):
        """Features by name, and `[B]` bool: whether a text was cut."""
        ids, truncated = self.tokenizer(texts, self.max_length)
        hidden = self._bert(ids)
        real = ids != self.tokenizer.pad_id
        # [CLS] and [SEP] frame a text of nothing, too.
        mask = real & (tf.math.count_nonzero(real, 1, keepdims=True) > 2)
        mean = masked_mean(hidden, mask)
        return {"text": hidden, "text_mask": mask, "text_mean": mean}, truncated
