"""Compiling C++: once for each source, and with a way out where it cannot be done."""

import logging
import os
import subprocess
from pathlib import Path

import pytest

from rlhf.cpu import compiler

SOURCE = 'extern "C" int answer() { return NUMBER; }\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file that returns 42 if it is told to; what is compiled lies beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "answer.cpp").write_text(SOURCE)
    return tmp_path / "answer.cpp"


@pytest.fixture
def compiled(monkeypatch):
    """The files that the compiler was given."""
    made, run = [], compiler._run

    def recorded(*command):
        made.extend(part for part in command if str(part).endswith(".cpp"))
        return run(*command)

    monkeypatch.setattr(compiler, "_run", recorded)
    return made


def answer(source, *options):
    return compiler.library(source, *options).answer()


def test_a_file_is_compiled_once(source, compiled):
    assert answer(source, "-DNUMBER=42") == 42
    assert answer(source, "-DNUMBER=42") == 42
    assert compiled == [source]
    assert [path.suffix for path in (source.parent / "cache" / "rlhf").iterdir()] == [".so"]


@pytest.mark.parametrize("change", ["source", "header", "options", "compiler", "processor", "torch"])
def test_what_could_differ_is_compiled_again(change, source, compiled, monkeypatch):
    first = compiler._fingerprint(source, ["c++", "-O3"])
    command = ["c++", "-O3"]
    if change == "source":
        source.write_text(SOURCE + "\n")
    elif change == "header":
        source.with_name("numbers.h").write_text("#pragma once\n")
    elif change == "options":
        command.append("-g")
    elif change == "compiler":
        monkeypatch.setattr(compiler, "_run", lambda *_: "c++ 99")
    elif change == "processor":
        monkeypatch.setattr(compiler, "_processor", lambda: "another one")
    else:
        monkeypatch.setattr(compiler.torch, "__version__", "99")
    assert compiler._fingerprint(source, command) != first
    monkeypatch.undo()


def test_what_does_not_compile_costs_a_warning(source, caplog):
    with caplog.at_level(logging.WARNING):
        assert compiler.library(source) is None
    (warning,) = caplog.messages
    assert warning.startswith("answer.cpp does not compile: ")
    assert "NUMBER" in warning
    assert list((source.parent / "cache" / "rlhf").iterdir()) == []


@pytest.mark.parametrize("home", ["a file", "not to be written to", "none"])
def test_without_a_cache_it_is_compiled_for_one_process(home, source, monkeypatch):
    if home == "a file":
        monkeypatch.setenv("XDG_CACHE_HOME", str(source))
    elif home == "not to be written to":
        monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def none():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", none)
    assert compiler._folder() == compiler._temporary_folder()
    assert answer(source, "-DNUMBER=42") == 42


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_what_others_may_write_to_is_not_loaded(mode, source, compiled, caplog):
    assert answer(source, f"-DNUMBER={mode}") == mode
    (made,) = (source.parent / "cache" / "rlhf").iterdir()
    made.write_text("not a library")
    made.chmod(mode)
    assert answer(source, f"-DNUMBER={mode}") == mode
    assert len(compiled) == 2
    assert "others may write to it" in caplog.text


def test_what_another_user_owns_is_not_loaded(source, compiled, monkeypatch):
    assert answer(source, "-DNUMBER=41") == 41
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert answer(source, "-DNUMBER=41") == 41
    assert len(compiled) == 2


def test_the_compiler_can_be_named(monkeypatch, source):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler.found() is not None  # g++ or clang++ all the same
    own = source.with_name("own-c++")
    own.write_text("#!/bin/sh\nexit 7\n")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert compiler.found() == str(own)
    assert compiler.library(source) is None


def test_a_compiler_that_is_not_one_is_no_end(source, monkeypatch, caplog):
    def fails(command, **options):
        raise subprocess.CalledProcessError(1, command, stderr="not a compiler")

    monkeypatch.setattr(compiler.subprocess, "run", fails)
    with caplog.at_level(logging.WARNING):
        assert compiler.library(source) is None
    assert "not a compiler" in caplog.text
