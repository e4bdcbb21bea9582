"""From rows of logits to answers: sampler, loop, text, and the engine that opens a bundle."""
