"""RepMLPNet, a hierarchical network of perceptrons into which depthwise convolutions are merged."""
