"""RepMLP, a multilayer perceptron into which convolutions are merged, and networks with it."""
