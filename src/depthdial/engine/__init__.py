"""Runs any method and knows none by name: prompts in, tokens with their depth out."""
