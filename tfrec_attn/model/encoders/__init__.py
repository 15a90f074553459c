"""One file a column kind: a column's values to feature tokens `[.., t, d]` and their mask.

Past the encoders there are only tokens and masks. Each encoder is a layer whose call gives
`(tokens, mask)`; a value that is missing or unknown is a masked token.
"""

from tfrec_attn.model.encoders.category import CategoryTokens
from tfrec_attn.model.encoders.embedding import EmbeddingTokens
from tfrec_attn.model.encoders.number import NumberTokens
from tfrec_attn.model.encoders.text import TextTokens

__all__ = ["CategoryTokens", "EmbeddingTokens", "NumberTokens", "TextTokens"]
