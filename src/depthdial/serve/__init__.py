"""An OpenAI-compatible server: a web front that never computes, and one process of its own that owns the engine."""
