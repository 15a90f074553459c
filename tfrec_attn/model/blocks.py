"""The parts of a BERT's blocks by name: maps, heads and weights."""

# The six maps of a block: the path of the layer that each hangs on, and its attribute.
MAPS = {
    "query": ("attention.self_attention", "query"),
    "key": ("attention.self_attention", "key"),
    "value": ("attention.self_attention", "value"),
    "attention": ("attention.dense_output", "dense"),
    "up": ("intermediate", "dense"),
    "down": ("bert_output", "dense"),
}


def owner(block, name: str):
    """The layer that one of the `MAPS` hangs on, and its attribute."""
    path, attribute = MAPS[name]
    for part in path.split("."):
        block = getattr(block, part)
    return block, attribute


def linear(block, name: str):
    """One of the `MAPS`."""
    return getattr(*owner(block, name))


def weight_name(variable) -> str:
    """Of a weight of the checkpoint, without what Keras calls this model."""
    return variable.name.removesuffix(":0").partition("/bert/")[2]


def weights(model) -> dict:
    """All weights of a `TFBertModel` by name."""
    return {weight_name(variable): variable for variable in model.variables}
