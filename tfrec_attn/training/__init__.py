"""From a built model to trained weights: stages, steps, what is kept of them."""
