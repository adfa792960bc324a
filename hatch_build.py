"""A wheel with the CPU kernels inside, for all instruction sets, where a C++ compiler is at hand; else a pure one."""

import importlib.util
import os
import platform
import re
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # pyright: ignore[reportMissingImports]  # there while a wheel is built


class Kernels(BuildHookInterface):
    def initialize(self, version, build_data):
        if version != "standard" or platform.system() != "Linux" or platform.machine() != "x86_64":
            return  # an editable install compiles what its sources say, on first use
        build = self._build()
        try:
            compiler, _ = build._compiler(os.environ.get("CXX"))
        except build.Unavailable:
            self.app.display_warning("no C++ compiler: this wheel has no CPU kernels inside")
            return
        folder = Path(tempfile.mkdtemp())
        glibc = 17
        for isa, (flags, _) in build.ISAS.items():
            if isa == build.EMULATED:
                continue
            path = folder / f"{isa}.so"
            build._compile(
                compiler, (*build._COMMON, *flags, "-static-libstdc++", "-static-libgcc"), path, isa, build.to_stderr
            )
            glibc = max([glibc, *(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", path.read_bytes()))])
            build_data["force_include"][str(path)] = f"depthdial/kernels/cpu/built/{isa}.so"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_{glibc}_x86_64"

    def _build(self):
        path = Path(self.root) / "src/depthdial/kernels/cpu/build.py"
        spec = importlib.util.spec_from_file_location("depthdial_build", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
