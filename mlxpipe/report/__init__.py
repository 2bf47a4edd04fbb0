"""How results are shown: on a terminal and as JSON."""
