"""Records, summarises and draws which tokens used how many layers."""
