"""Tables and figures, from score files alone."""
