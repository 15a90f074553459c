"""From a trained model to figures: ranks of held-out events, tables and pictures."""
