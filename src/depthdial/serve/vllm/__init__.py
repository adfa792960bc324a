"""A plug-in for vLLM: models exported by `depthdial export` run there with skipped work really skipped."""
