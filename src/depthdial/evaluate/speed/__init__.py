"""How fast a model runs, beside what this machine could do at most and beside other engines."""
