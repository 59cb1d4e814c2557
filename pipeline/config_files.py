"""Files of configurations: where they are looked for, and YAML without silent misreadings."""

import re
from pathlib import Path

import yaml

from pipeline.config import require

# The folder stands beside the package: in a checkout, in an editable install and in a wheel.
CONFIGS = Path(__file__).parents[1] / "configs"


def find_config(name: str | Path) -> Path:
    """Path of a configuration, a file or a folder: in the current folder, else in the package.

    `nano/ppo.yaml` and `configs/nano/ppo.yaml` name the same file of the package. What is in
    neither place comes back as it is.
    """
    path = Path(name)
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    packaged = packaged_config(path)
    return packaged if packaged.exists() else path


def packaged_config(name: str | Path) -> Path:
    """Path of a configuration of the package, relative where it lies below the current folder."""
    parts = Path(name).parts
    path = CONFIGS.joinpath(*(parts[1:] if parts[:1] == ("configs",) else parts))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def read_arguments(path: Path) -> dict[str, object]:
    """Content of a YAML file of arguments.

    Raises:
        ValueError: the file is no YAML, or holds no `field: value` lines.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise ValueError(f"--config {path} is no YAML for arguments: {reason}") from error
    require(
        isinstance(content, dict),
        f"--config {path} holds no arguments; write one a line, such as `seed: 1`",
    )
    return content


def read_preset(folder: Path, name: str) -> dict[str, object]:
    """Content of the preset of that name.

    Raises:
        ValueError: there is no preset of that name, or it is no YAML.
    """
    path = folder / f"{name}.yaml"
    names = sorted(preset.stem for preset in folder.glob("*.yaml"))
    require(
        name in names, f"preset {name!r} is not one of {', '.join(names) or 'none'} in {folder}/"
    )
    return read_arguments(path)


def see_configs() -> str:
    """Where the configurations of the package are."""
    return f"see the folder {packaged_config('')}/"


class StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses what YAML would misread silently.

    A repeated key; an alias (a few hundred bytes of them can fill the memory); `12:30` and `012`,
    which YAML 1.1 reads as 750 and 10.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node; an alias is an error."""
        if self.check_event(yaml.AliasEvent):
            raise _yaml_error("an alias is not allowed here", self.peek_event())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """The mapping of a node; a repeated key is an error."""
        seen = set()
        names = [key for key, _ in getattr(node, "value", ()) if isinstance(key.value, str)]
        for key in names:
            if key.value in seen:
                raise _yaml_error(f"the key {key.value!r} stands twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """The number of a node; a sexagesimal or octal one is an error."""
        if ":" in node.value or re.fullmatch(r"[-+]?0[0-7_]+", node.value):
            raise _yaml_error(f"{node.value} would be read as another number; quote it", node)
        return super().construct_yaml_int(node)


StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)


def _yaml_error(what: str, at: yaml.Node | yaml.Event) -> yaml.YAMLError:
    mark = at.start_mark
    return yaml.YAMLError(f"line {mark.line + 1}: {what}" if mark else what)
