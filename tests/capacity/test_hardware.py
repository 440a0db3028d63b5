"""The table of constants: every one has a source, users' own files win, and mistakes in them are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import megacode.capacity
from megacode.base.errors import ConfigError
from megacode.capacity.hardware import load_hardware

TABLE = yaml.safe_load((Path(megacode.capacity.__file__).parent / "hardware.yaml").read_text())


def test_every_constant_has_value_source_and_date_and_every_gpu_the_same_ones() -> None:
    entries = [*TABLE["gpus"].values(), *(section for name, section in TABLE.items() if name != "gpus")]
    for section in entries:
        for name, entry in section.items():
            assert set(entry) == {"value", "source", "measured"}, name
            assert float(entry["value"]) >= 0, name
            assert entry["source"], name
    assert len({tuple(gpu) for gpu in TABLE["gpus"].values()}) == 1
    assert all(0 < value <= 1 for gpu in TABLE["gpus"] for name, value in load_hardware(gpu).values.items()
               if name.endswith("efficiency"))  # fmt: skip


def test_a_gpu_is_known_by_its_name_in_any_case() -> None:
    assert load_hardware("h200").gpu == "H200"
    with pytest.raises(ConfigError, match="--gpu: unknown GPU 'H10'") as caught:
        load_hardware("H10")
    assert "did you mean H100?" in caught.value.problems[0].fix


def own(tmp_path: Path, text: str) -> Path:
    (tmp_path / "own.yaml").write_text(text)
    return tmp_path / "own.yaml"


def test_a_user_s_constants_win(tmp_path: Path) -> None:
    file = own(
        tmp_path,
        """
gpus:
  H100: {gemm_efficiency: {value: 0.7, source: our cluster, measured: 2026-11-27}, network_bandwidth: 4.5e10}
  GH200: {like: H100, memory_gib: 95.0}
network: {gpus_per_node: 4}
""",
    )
    hardware = load_hardware("H100", file)
    assert (hardware["gemm_efficiency"], hardware["network_bandwidth"], hardware["gpus_per_node"]) == (0.7, 4.5e10, 4)
    assert hardware.measured["gemm_efficiency"] == "2026-11-27"
    assert "network_bandwidth" not in hardware.measured
    other = load_hardware("gh200", file)
    assert (other["memory_gib"], other["memory_bandwidth"]) == (95.0, load_hardware("H100")["memory_bandwidth"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("networks: {gpus_per_node: 4}", "'networks' is not a section of the table"),
        ("network: {gpu_per_node: 4}", "'gpu_per_node' is not a constant of the table"),
        ("network: {gpus_per_node: many}", "'many' is not a positive number"),
        ("network: {gpus_per_node: 0}", "0 is not a positive number"),
        ("network: 4", "'network' is not a section of the table"),
        ("gpus: {X1: {like: Y1}}", "'X1' has no constants, or is not `like` a known GPU"),
        ("[1, 2]", "not a table of constants"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"own\.yaml") as caught:
        load_hardware("H100", own(tmp_path, text))
    assert said in str(caught.value)
    assert all(problem.fix for problem in caught.value.problems)


def test_all_mistakes_are_reported_at_once_and_an_absent_file_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_hardware("H100", own(tmp_path, "network: {a: 1, b: 2}\nfoo: {}"))
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="No such file"):
        load_hardware("H100", tmp_path / "absent.yaml")
