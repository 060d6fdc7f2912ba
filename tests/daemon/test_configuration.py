"""What the settings are made of, and how each mistake is told."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from foundation.daemon import logs
from foundation.daemon.configuration import ConfigurationError, DaemonConfig, load, nearest
from foundation.daemon.schema import Secret


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size_mib: Annotated[int, msgspec.Meta(ge=1)] = 4


class Target(msgspec.Struct, frozen=True, kw_only=True):
    address: str = "unix:/run/spdk.sock"
    """Where SPDK listens."""
    password: str = ""
    key_file: str = "/etc/key"


class SampleConfig(DaemonConfig, frozen=True, kw_only=True):
    """A sample of all kinds of settings."""

    node: str = "n1"
    """This node's name."""
    mode: Literal["default", "host", "dpu"] = "default"
    count: Annotated[int, msgspec.Meta(gt=0)] = 1
    wait_seconds: float = 2.5
    enabled: bool = False
    limit: int | None = None
    target: Target = Target()
    spare: Target | None = None
    names: list[str] = msgspec.field(default_factory=list)
    pools: list[Pool] = msgspec.field(default_factory=list)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    pairing: Secret = ""
    root: Path = Path("/sys")
    """The sysfs tree."""


def sample(*argv: str, environ: Mapping[str, str] | None = None) -> SampleConfig:
    return load(SampleConfig, name="sample-daemon", argv=argv, environ=environ or {})


def written(directory: Path, text: str) -> str:
    path = directory / "sample.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_stand_where_no_source_speaks() -> None:
    assert sample() == SampleConfig()
    assert sample().http == "127.0.0.1:0"
    assert sample().shutdown_seconds == 10.0


def test_later_source_wins_and_mappings_are_merged(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        node: from-file
        count: 2
        wait_seconds: 7
        target: {address: "tcp:file:1", key_file: /file}
        labels: {a: file, b: file}
        names: [file]
        """,
    )
    environ = {
        "DPU_OFFLOAD_SAMPLE_DAEMON_CONFIG": path,
        "DPU_OFFLOAD_SAMPLE_DAEMON__COUNT": "3",
        "DPU_OFFLOAD_SAMPLE_DAEMON__NODE": "from-environment",
        "DPU_OFFLOAD_SAMPLE_DAEMON__TARGET__ADDRESS": "tcp:environment:1",
        "DPU_OFFLOAD_SAMPLE_DAEMON__LABELS": "{b: environment}",
        "DPU_OFFLOAD_OTHER__NODE": "not mine",
        "DPU_OFFLOAD_SAMPLE_DAEMONS__NODE": "not mine either",
    }
    config = sample("--set", "node=from-flag", "--set=names=[x, y]", environ=environ)
    assert config.node == "from-flag"
    assert config.count == 3
    assert config.wait_seconds == 7.0
    assert config.target == Target(address="tcp:environment:1", key_file="/file")
    assert config.labels == {"a": "file", "b": "environment"}
    assert config.names == ["x", "y"]


def test_config_flag_beats_config_variable(tmp_path: Path) -> None:
    path = written(tmp_path, "node: right")
    environ = {"DPU_OFFLOAD_SAMPLE_DAEMON_CONFIG": str(tmp_path / "absent.yaml")}
    assert sample("--config", path, environ=environ).node == "right"
    assert sample(f"--config={path}", environ=environ).node == "right"


@pytest.mark.parametrize("empty", ["", "# only a remark\n", "---\n"])
def test_empty_file_is_no_settings(tmp_path: Path, empty: str) -> None:
    assert sample("--config", written(tmp_path, empty)) == SampleConfig()


@pytest.mark.parametrize(
    ("setting", "field", "expected"),
    [
        ("node=123", "node", "123"),
        ("node=true", "node", "true"),
        ("node=a=b", "node", "a=b"),
        ("node=", "node", ""),
        ("node=: {not yaml", "node", ": {not yaml"),
        ("count=7", "count", 7),
        ("wait_seconds=1e3", "wait_seconds", 1000.0),
        ("enabled=true", "enabled", True),
        ("enabled=0", "enabled", False),
        ("limit=5", "limit", 5),
        ("limit=null", "limit", None),
        ("mode=dpu", "mode", "dpu"),
        ("root=/tmp/a b", "root", Path("/tmp/a b")),
        ("names=[a, 'b c']", "names", ["a", "b c"]),
        ("pools=[{name: p, size_mib: 2}]", "pools", [Pool(name="p", size_mib=2)]),
        ("target={address: x}", "target", Target(address="x")),
        ("spare.address=x", "spare", Target(address="x")),
        ("labels.zone=7", "labels", {"zone": "7"}),
        # To YAML 1.1 these are 180 minutes, 12 hours and an error of the calendar.
        ("names=[0000:03:00.0, 12:00:00:01, 2026-13-45]", "names", ["0000:03:00.0", "12:00:00:01", "2026-13-45"]),
    ],
)
def test_text_becomes_the_type_of_its_field(setting: str, field: str, expected: Any) -> None:
    assert getattr(sample("--set", setting), field) == expected
    key, _, value = setting.partition("=")
    environ = {"DPU_OFFLOAD_SAMPLE_DAEMON__" + key.upper().replace(".", "__"): value}
    assert getattr(sample(environ=environ), field) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noode: x", "{path}: unknown key noode; did you mean node?"),
        ("target: {adress: x}", "{path}: unknown key target.adress; did you mean address?"),
        ("target: {zzzzz: x}", "{path}: unknown key target.zzzzz; known here: address, key_file, password"),
        ("spare: {pasword: x}", "{path}: unknown key spare.pasword; did you mean password?"),
        ("pools: [{name: a}, {nane: b}]", "{path}: unknown key pools.1.nane; did you mean name?"),
        ("log: {levl: info}", "{path}: unknown key log.levl; did you mean level?"),
        ("5: x", "{path}: unknown key 5; known here: "),
        ("count: many", "{path}: count expected a whole number, got text"),
        ("count: 0", "{path}: count expected a whole number >= 1"),
        ("mode: both", "{path}: mode is 'both', expected one of default, host, dpu"),
        ("log: {level: loud}", "{path}: log.level is 'loud', expected one of debug, info, warning, error"),
        ("log: {loggers: {x: loud}}", "{path}: log.loggers is 'loud', expected one of debug, info, warning, error"),
        ("names: x", "{path}: names expected a list, got text"),
        ("names: [1]", "{path}: names.0 expected text, got a whole number"),
        ("enabled: 3", "{path}: enabled expected true or false, got a whole number"),
        ("target: []", "{path}: target expected a mapping, got a list"),
        ("pools: [{size_mib: 1}]", "{path}: pools.0.name is required and has no default"),
        ("shutdown_seconds: 0", "{path}: shutdown_seconds expected a number > 0"),
        ("root: 5", "{path}: root expected a path, got int"),
        ("- a", "{path}: expected a mapping of settings, got list"),
        ("node: a\nnode: b", "{path}: line 2 column 1 is not YAML: key 'node' stands twice"),
        ("node: [", "{path}: line 1 column 8 is not YAML: "),
        ("node: \t@x", "{path}: line 1 column 7 is not YAML: "),
    ],
)
def test_mistake_in_a_file_names_file_key_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        sample("--config", path)
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--set", "cuont=2"], {}, "--set: unknown key cuont; did you mean count?"),
        (["--set", "count=x"], {}, "--set: count expected a whole number, got text"),
        (["--set", "count=0"], {}, "--set: count expected a whole number >= 1"),
        (["--set", "names=[a"], {}, "--set: line 1 column 3 is not YAML: "),
        (["--set", "count"], {}, "--set count: expected field.subfield=value"),
        (["--set", "node.sub=x"], {}, "--set: node expected text, got a mapping"),
        (["--set"], {}, "--set needs a value; see sample-daemon --help"),
        (["--conf", "x"], {}, "unknown argument --conf; did you mean --config?; see sample-daemon --help"),
        (["stray"], {}, "unknown argument stray; known here: "),
        (["--help=yes"], {}, "--help takes no value; see sample-daemon --help"),
        (["--config", "/nowhere/x.yaml"], {}, "/nowhere/x.yaml: cannot read the configuration: No such file"),
        (["--config", "/"], {}, "/: cannot read the configuration: Is a directory"),
        ([], {"DPU_OFFLOAD_SAMPLE_DAEMON__NODES": "x"},
         "environment variable DPU_OFFLOAD_SAMPLE_DAEMON__NODES: unknown key nodes; did you mean node?"),
        ([], {"DPU_OFFLOAD_SAMPLE_DAEMON__LIMIT": "x"},
         "environment variable DPU_OFFLOAD_SAMPLE_DAEMON__LIMIT: limit expected a whole number or nothing, got text"),
    ],
)  # fmt: skip
def test_mistake_elsewhere_names_its_source(argv: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        sample(*argv, environ=environ)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wait_seconds: .inf", "wait_seconds is inf, expected a finite number"),
        ("wait_seconds: .nan", "wait_seconds is nan, expected a finite number"),
        ("{[node]: x}", "line 1 column 2 is not YAML: a key must be a word"),
        ("names: &all [*all]", "nested too deeply, or an alias leads back to what holds it"),
        ("labels: &all {zone: *all}", "nested too deeply, or an alias leads back to what holds it"),
        (f"names: {'[' * 3000}", "nested too deeply, or an alias leads back to what holds it"),
        ("count: !!int many", "is not YAML: a value does not fit its tag"),
        ("names: [8086]", "names.0 expected text, got a whole number; put it in quotes"),
    ],
)
def test_odd_yaml_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        sample("--config", written(tmp_path, text))
    assert message in str(caught.value)


def test_endless_waits_are_refused_from_flags_too() -> None:
    with pytest.raises(ConfigurationError, match="--set: wait_seconds is inf, expected a finite number"):
        sample("--set", "wait_seconds=inf")


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"binary\.yaml: the configuration is not UTF-8 text"):
        sample("--config", str(path))


def test_check_of_a_struct_is_told_as_a_configuration_error() -> None:
    class Checked(DaemonConfig, frozen=True, kw_only=True):
        low: int = 1
        high: int = 2

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low ({self.low}) is over high ({self.high})")

    with pytest.raises(ConfigurationError, match=r"--set: low \(3\) is over high \(2\)"):
        load(Checked, name="x", argv=["--set", "low=3"], environ={})


def test_required_key_is_told_when_no_source_has_it() -> None:
    class Demanding(DaemonConfig, frozen=True, kw_only=True):
        node: str

    with pytest.raises(ConfigurationError, match=r"^demanding configuration: node is required and has no default$"):
        load(Demanding, name="demanding", argv=[], environ={})


def test_print_config_shows_what_is_in_force_without_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "target: {password: hunter2hunter2}\nnode: has-hunter2hunter2-inside")
    with pytest.raises(SystemExit) as ended:
        sample("--config", path, "--set", "pairing=pair-canary", "--set", "count=9", "--print-config")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "hunter2hunter2" not in out
    assert "pair-canary" not in out
    shown = yaml.safe_load(out)
    assert shown["count"] == 9
    assert shown["root"] == "/sys"
    assert shown["target"] == {
        "address": "unix:/run/spdk.sock", "password": logs.REDACTED, "key_file": "/etc/key",
    }  # fmt: skip
    assert shown["pairing"] == logs.REDACTED
    assert shown["node"] == f"has-{logs.REDACTED}-inside"


def test_printed_configuration_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given_first = ["--set", "pools=[{name: p}]", "--set", "limit=3", "--set", "labels={a: '1'}", "--set", "root=/x"]
    with pytest.raises(SystemExit):
        sample(*given_first, "--print-config")
    assert sample("--config", written(tmp_path, capsys.readouterr().out)) == sample(*given_first)


def test_secret_settings_are_known_to_the_log_even_when_the_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        sample("--set", "target.password=canary-4711", "--set", "mode=canary-4711")
    assert "canary-4711" not in str(caught.value)
    assert logs.redact("x canary-4711 y") == f"x {logs.REDACTED} y"


def test_help_lists_every_key_with_type_default_and_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sample("--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for line in (
        "usage: sample-daemon [--config PATH]",
        "A sample of all kinds of settings.",
        '  node  (str; default "n1")\n      This node\'s name.\n',
        "  mode  (default | host | dpu; default \"default\")",
        "  count  (int; default 1)",
        "  limit  (int | none; default null)",
        '  target.address  (str; default "unix:/run/spdk.sock")\n      Where SPDK listens.\n',
        "  names  (list[str]; default [])",
        '  root  (Path; default "/sys")\n      The sysfs tree.\n',
        "  pools.#.name  (str; required)",
        "  spare.address",
        '  log.level  (debug | info | warning | error; default "info")\n      Least level that is logged.\n',
        "  shutdown_seconds  (float; default 10.0)",
        "DPU_OFFLOAD_SAMPLE_DAEMON__LOG__LEVEL=debug",
    ):  # fmt: skip
        assert line in out


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        sample("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("sample-daemon ")


_names = st.sampled_from(sorted(SampleConfig.__struct_fields__))


@given(_names, st.integers(min_value=0), st.sampled_from(string.ascii_lowercase))
def test_one_wrong_letter_still_finds_the_name(name: str, position: int, letter: str) -> None:
    position %= len(name)
    wrong = name[:position] + letter + name[position + 1 :]
    others = [other for other in SampleConfig.__struct_fields__ if other != name]
    if wrong in SampleConfig.__struct_fields__ or len(name) < 4 or wrong in others:
        return
    assert nearest(wrong, SampleConfig.__struct_fields__) in {f"; did you mean {other}?" for other in (name, *others)}


@given(
    file=st.none() | st.integers(1, 99),
    environment=st.none() | st.integers(1, 99),
    flag=st.none() | st.integers(1, 99),
)
def test_precedence_holds_for_every_choice_of_sources(
    file: int | None, environment: int | None, flag: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    argv: list[str] = []
    environ: dict[str, str] = {}
    if file is not None:
        argv += ["--config", written(tmp_path_factory.getbasetemp(), f"count: {file}")]
    if environment is not None:
        environ["DPU_OFFLOAD_SAMPLE_DAEMON__COUNT"] = str(environment)
    if flag is not None:
        argv += ["--set", f"count={flag}"]
    expected = next((value for value in (flag, environment, file) if value is not None), 1)
    assert sample(*argv, environ=environ).count == expected


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_passes_unchanged_through_a_text_setting(text: str) -> None:
    assert sample("--set", f"node={text}").node == text
    assert sample(environ={"DPU_OFFLOAD_SAMPLE_DAEMON__NODE": text}).node == text
