"""How a network learns: as a function of flat parameters, unrolled, augmented, by which loss."""
