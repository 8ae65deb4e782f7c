"""Key files and `tidegate keys`: made, added to, looked at; nothing in them is lost, no secret is shown."""

import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.operations.running import Shell
from tidegate.errors import ConfigError
from tidegate.keyfile import add_key, ring_reader, states_of
from tidegate.middleware.core.keyring import KeyRing
from tidegate.middleware.stores.base import MAX_RETAIN
from tidegate.settings import Settings, StoreSettings

NOW = 1_700_000_000.0
SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, capsys, monkeypatch)


def read(path: Path) -> KeyRing:
    reader = ring_reader(StoreSettings(key_file=str(path)))
    assert reader is not None
    return reader()


def test_the_first_key_seals_at_once_and_the_next_after_its_lead(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    first = add_key(path, now=NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(first.naming_key) == 32
    before = path.read_text()
    second = add_key(path, now=NOW, lead=600.0)
    assert path.read_text().startswith(before), "everything that stood there stays"
    assert second == read(path)
    assert (second.keys[0], second.naming_key) == (first.keys[0], first.naming_key)
    assert [second.sealing(NOW + late) for late in (0, 599, 600)] == [first.keys[0]] * 2 + [second.keys[1]]
    states = states_of(second, NOW + 601)
    assert [(state.seals, state.gone_from) for state in states] == [(False, NOW + 600 + MAX_RETAIN), (True, None)]


def test_a_line_that_is_no_key_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("# keys\nrubbish\n")
    with pytest.raises(ConfigError) as raised:
        read(path)
    told = str(raised.value)
    assert "  - line 2: '***' is no key, or not the whole of one; " in told
    assert "  - keys have no sealing key; make one: tidegate keys new" in told


def test_no_key_is_added_to_one_that_waits_nor_to_a_file_with_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    add_key(path, now=NOW)
    add_key(path, now=NOW, lead=600.0)
    for spoil in ("", "tgk1_x\n"):
        before = path.read_text() + spoil
        path.write_text(before)
        with pytest.raises(ConfigError, match=r"is no key" if spoil else r"will seal from 2023-11-14T22:23:20Z"):
            add_key(path, now=NOW + 599)
        assert path.read_text() == before
    path.write_text(path.read_text().replace("tgk1_x\n", ""))
    assert len(add_key(path, now=NOW + 600).keys) == 3


def test_a_file_whose_last_line_is_no_line_is_added_to_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    add_key(path, now=NOW)
    path.write_text(path.read_text().rstrip("\n"))
    assert len(add_key(path, now=NOW).keys) == 2
    path.write_text("# kept\n\n" + path.read_text() + "\n\n")
    add_key(path, now=NOW + 3600)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["# kept", ""]
    assert len(read(path).keys) == 3


SPOILT: dict[str, Callable[[Path], object]] = {
    "not there": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "not UTF-8": lambda path: path.write_bytes(b"\xff"),
    "too large": lambda path: path.write_bytes(b"#" * 70_000),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    path = tmp_path / "keys.txt"
    spoil(path)
    with pytest.raises(ConfigError, match=r"keys\.txt.*cannot be read.*tidegate keys new"):
        read(path)


def test_keys_and_key_file_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"store\.key_file.*both given.*keep one"):
        ring_reader(StoreSettings(keys=("a",), key_file="b"))
    assert ring_reader(StoreSettings()) is None


def test_settings_take_keys_from_the_environment_and_show_none_of_them(shell: Shell) -> None:
    code, out, _ = shell.run("keys", "new", "--print")
    naming, sealing = out.split()
    assert code == 0
    settings = Settings.load(environ={"TIDEGATE_STORE_KEYS": f"{naming}, 2026-11-29T03:00:00Z {sealing}"})
    reader = ring_reader(settings.store)
    assert reader is not None
    assert [key.since for key in reader().keys] == [1795921200.0]
    with pytest.raises(ConfigError) as raised:
        Settings.of({"store": {"keys": sealing}})
    assert "store.keys" in str(raised.value)
    assert not SECRET.search(str(raised.value))


def test_the_commands_make_add_and_look_without_showing_a_secret(shell: Shell) -> None:
    def run(*words: str, code: int) -> str:
        got, out, err = shell.run("keys", *words)
        assert got == code, (words, out, err)
        assert not SECRET.search(out + err)
        return out + err

    assert "no keys are configured" in run("check", code=1)
    assert "is not given" in run("new", code=2)
    assert 'key_file = "k.txt"' in run("new", "k.txt", code=0)
    shell.settings('[store]\nkey_file = "k.txt"\n')
    assert "seals, and opens" in run("check", code=0)
    assert "will seal from" in run("new", code=0)
    assert "opens; will seal from" in run("check", code=0)
    assert "wait until it does" in run("new", code=2)
    for lead in ("-1", "nan", "1e99", "soon"):
        assert "--lead" in run("new", "other.txt", "--lead", lead, code=2)
    run("new", "hours.txt", code=0)
    assert "will seal from" in run("new", "hours.txt", "--lead", "2h", code=0)
    assert "cannot be written" in run("new", "none/k.txt", code=2)
    path = shell.folder / "k.txt"
    path.write_text(path.read_text().replace("tgn1_", "# tgn1_"))
    path.chmod(0o644)
    told = run("check", code=1)
    assert "chmod 600 k.txt" in told
    assert "naming key: none" in told
