"""From a wish to a ranked list: a funnel from the model's samples to a few crystals that several judges believe in."""
