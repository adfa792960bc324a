"""Generated tasks whose need of depth is known, small models trained on them, and judges of where methods put depth."""
