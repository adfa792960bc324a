"""Measures converted models on text they never saw: quality against true cost, and whether routers decide anything."""
