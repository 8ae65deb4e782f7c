"""Reading a rollout's YAML file. Apart from `spec`, because PyYAML comes with the extra `rollout`."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

import yaml

from tidegate.errors import Problems
from tidegate.rollout.spec import RolloutSpec

__all__ = ["load_spec"]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML forbids it and PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = cast(object, cast(Any, self).construct_object(key_node, deep=True))
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key} stands there twice", problem_mark=key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def load_spec(path: str | Path) -> RolloutSpec:
    """The rollout in a YAML file.

    Raises:
        ConfigError: if the file cannot be read, is not YAML (with line and column), or has any problem, all of them.
    """
    file = Path(path)
    problems = Problems(str(file))
    raw: object = None
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        problems.add("file", str(file), "does not exist", "give the path of a rollout's YAML file")
    except OSError as error:
        problems.add("file", str(file), f"cannot be read: {error.strerror}", "make it readable")
    except UnicodeDecodeError as error:
        problems.add("file", str(file), f"is not UTF-8 at byte {error.start}", "save it as UTF-8")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "file"
        problems.add(
            where, _line(file, mark.line) if mark else str(file), f"is not YAML: {error.problem}", "correct it"
        )
    except yaml.YAMLError as error:
        problems.add("file", str(file), f"is not YAML: {error}", "correct it")
    except (ValueError, LookupError, AttributeError) as error:  # PyYAML's own, of a value that its tag cannot hold
        problems.add(
            "file", str(file), f"holds a value that cannot be read: {error}", "put dates and the like in quotes"
        )
    except RecursionError:
        problems.add("file", str(file), "is nested too deeply", "a spec has three levels")
    problems.raise_if_any()
    return RolloutSpec.parse(raw, str(file))


def _line(file: Path, number: int) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines[number].strip() if number < len(lines) else ""
