"""What the loop asks of a model: log-probabilities, values and hidden states; and critics. Loading is elsewhere."""
