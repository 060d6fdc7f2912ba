"""hatch_build.py on a small project of its own: what is generated, replaced, kept and refused."""

import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "hatch_build.py"
PROTO = """syntax = "proto3";
package t;
message Thing {{ string {field} = 1; }}
service S {{ rpc Do(Thing) returns (Thing); }}
"""
PT_INTERP = 3


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program_header_types(elf: bytes) -> list[int]:
    """p_type of each program header of a 64-bit little-endian ELF file."""
    (offset,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    return [struct.unpack_from("<I", elf, offset + index * size)[0] for index in range(count)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "proto/a/v1").mkdir(parents=True)
    (tmp_path / "cni/bin").mkdir(parents=True)
    (tmp_path / "proto/a/v1/thing.proto").write_text(PROTO.format(field="first"))
    return tmp_path


def test_stubs_follow_their_sources(build: ModuleType, project: Path) -> None:
    (project / "proto/b.proto").write_text(
        'syntax = "proto3";\nimport "dpu_offload_stubs/a/v1/thing.proto";\nmessage Other { t.Thing thing = 1; }\n'
    )
    assert build.generate_stubs(project)
    stubs = project / "dpu_offload_stubs"
    for name in ("thing_pb2.py", "thing_pb2.pyi", "thing_pb2_grpc.py", "thing_pb2_grpc.pyi", "__init__.py"):
        assert (stubs / "a/v1" / name).is_file(), name
    assert (stubs / "py.typed").is_file()
    check = "from dpu_offload_stubs import b_pb2; print(b_pb2.Other(thing={'first': 'x'}).thing.first)"
    ran = subprocess.run([sys.executable, "-c", check], cwd=project, capture_output=True, text=True, check=True)
    assert ran.stdout == "x\n"

    assert not build.generate_stubs(project), "unchanged sources must not be generated again"
    before = (stubs / "a/v1/thing_pb2.py").stat().st_mtime_ns
    (project / "proto/b.proto").unlink()
    assert build.generate_stubs(project)
    assert not (stubs / "b_pb2.py").exists()
    assert (stubs / "a/v1/thing_pb2.py").stat().st_mtime_ns == before, "an equal file must stay as it is"


def test_a_broken_source_changes_nothing(build: ModuleType, project: Path) -> None:
    build.generate_stubs(project)
    stub = project / "dpu_offload_stubs/a/v1/thing_pb2.py"
    kept = stub.read_bytes()
    (project / "proto/a/v1/thing.proto").write_text("syntax = 'proto3'; message {")
    with pytest.raises(build.BuildError, match=r"a/v1/thing\.proto:1"):
        build.generate_stubs(project)
    assert stub.read_bytes() == kept
    (project / "proto/a/v1/thing.proto").write_text(PROTO.format(field="second"))
    assert build.generate_stubs(project)
    assert b"second" in stub.read_bytes()


def test_an_interrupted_run_is_repeated(build: ModuleType, project: Path) -> None:
    build.generate_stubs(project)
    stubs = project / "dpu_offload_stubs"
    (stubs / build.FINGERPRINT).unlink()
    (stubs / "a/v1/thing_pb2_grpc.py").unlink()
    assert build.generate_stubs(project)
    assert (stubs / "a/v1/thing_pb2_grpc.py").is_file()


def test_no_sources_is_an_error(build: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match=r"no \.proto file"):
        build.generate_stubs(tmp_path)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_cni_bin_is_static(build: ModuleType, project: Path) -> None:
    assert "does not exist" in build.compile_cni_bin(project)
    (project / "cni/bin/cni_bin.c").write_text("int main(void) { return 7; }\n")
    assert "is built" in build.compile_cni_bin(project)
    binary = project / "cni/bin/dpu-offload"
    assert subprocess.run([str(binary)], check=False).returncode == 7
    assert PT_INTERP not in program_header_types(binary.read_bytes())
    assert build.compile_cni_bin(project) == "cni-bin is up to date"
    (project / "cni/bin/cni_bin.c").write_text("int main(void) { return }\n")
    with pytest.raises(build.BuildError, match=r"cni_bin\.c:1"):
        build.compile_cni_bin(project, force=True)
    assert subprocess.run([str(binary)], check=False).returncode == 7, "the old binary must survive a failed build"


def test_no_compiler_is_said(build: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "cni/bin/cni_bin.c").write_text("int main(void) { return 0; }\n")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no C compiler" in build.compile_cni_bin(project)
