"""The article's feedback labels (section 5.2), strongest liking first."""

LABELS = ("buy", "like", "ignore", "dislike", "not_buy")
