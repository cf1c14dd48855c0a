"""Studies made with an operator: loss landscapes, training histories, batch jackknife."""
