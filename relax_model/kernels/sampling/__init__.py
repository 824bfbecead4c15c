"""From rows of logits to tokens: greedy, or by temperature, filters and a draw."""
