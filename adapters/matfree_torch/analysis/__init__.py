"""Studies of a network with an operator: loss landscape, training history, batch jackknife."""
