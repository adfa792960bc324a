import pytest

from depthdial.kernels.cpu import build
from depthdial.kernels.cpu.abi import load
from depthdial.kernels.cpu.build import library


def test_the_portable_form_runs_everywhere_and_comes_last():
    assert build.supported()[-1] == "portable"
    assert set(build.supported()) <= set(build.ISAS)


def test_a_library_is_built_once_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SOURCES", _tiny_sources(tmp_path / "csrc"))
    said: list[str] = []
    path = library("portable", said.append, tmp_path / "cache")
    assert path.exists() and len(said) == 2 and "compiled" in said[1]
    assert library("portable", said.append, tmp_path / "cache") == path
    assert len(said) == 2
    assert not list(path.parent.glob("*.part"))


def test_other_sources_and_other_flags_are_other_libraries(tmp_path, monkeypatch):
    sources = _tiny_sources(tmp_path / "csrc")
    monkeypatch.setattr(build, "SOURCES", sources)
    first = library("portable", _silent, tmp_path / "cache")
    (sources / "more.h").write_text("// changed\n")
    assert library("portable", _silent, tmp_path / "cache") != first


def test_without_a_compiler_the_reason_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    build._compiler.cache_clear()
    try:
        with pytest.raises(build.Unavailable, match=r"install g\+\+ or clang"):
            library("portable", _silent, tmp_path)
    finally:
        build._compiler.cache_clear()


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    sources = _tiny_sources(tmp_path / "csrc")
    (sources / "pass.cpp").write_text("int broken(\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    with pytest.raises(build.Unavailable, match=r"could not compile the CPU kernels for portable: .*error"):
        library("portable", _silent, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.so")) and not list((tmp_path / "cache").glob("*.part"))


def test_a_folder_that_cannot_be_made_says_where_to_look(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(build.Unavailable, match="XDG_CACHE_HOME"):
        library("portable", _silent, tmp_path / "file" / "cache")


def test_the_cache_follows_the_users_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build._cache_folder() == tmp_path / "depthdial" / "kernels"


def test_the_real_library_loads():
    found = load(str(library("portable", _silent)))
    assert found.depthdial_ready() == 1


def _tiny_sources(folder):
    folder.mkdir()
    (folder / "pass.cpp").write_text('extern "C" int one() { return 1; }\n')
    return folder


def _silent(message: str) -> None:
    pass
