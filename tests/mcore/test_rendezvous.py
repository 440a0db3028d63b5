from __future__ import annotations

import pytest

from megacode.base.errors import LaunchError
from megacode.mcore.rendezvous import Rendezvous, first_host, read

pytestmark = pytest.mark.one_release  # nothing here calls Megatron-core

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_PROCID": "9",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


def test_without_a_launcher_a_process_is_alone() -> None:
    assert read({}) == Rendezvous(rank=0, world_size=1, local_rank=0, address="", port=0)


def test_torchrun_is_read() -> None:
    assert read(TORCHRUN) == Rendezvous(5, 8, 1, "node1", 29500)


def test_torchrun_wins_over_slurm() -> None:
    assert read({**STEP, **TORCHRUN}).world_size == 8


def test_a_slurm_step_is_read_and_its_port_follows_from_the_job() -> None:
    assert read(STEP) == Rendezvous(9, 16, 1, "gpu003", 20000 + 2 * (123456 % 6000))


def test_a_batch_script_outside_srun_is_one_process() -> None:
    script = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert read(script).world_size == 1


def test_address_and_port_can_be_overridden_under_slurm() -> None:
    found = read({**STEP, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4242"})
    assert (found.address, found.port) == ("10.0.0.7", 4242)


def test_one_node_needs_no_name_that_resolves() -> None:
    assert read({**STEP, "SLURM_STEP_NUM_NODES": "1"}).address == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[003-010,12],login1", "gpu003"), ("a1,b2", "a1"), ("solo", "solo"), ("rack[1,3]-ib", "rack1-ib")],
)
def test_the_first_host_of_slurms_short_form(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_no_nodes_is_an_error_that_names_the_way_out() -> None:
    with pytest.raises(LaunchError, match="set MASTER_ADDR"):
        first_host("")


def test_half_a_torchrun_environment_is_refused() -> None:
    with pytest.raises(LaunchError, match="RANK is set, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        read({"RANK": "0"})


def test_a_rank_beyond_the_world_is_refused() -> None:
    with pytest.raises(LaunchError, match="rank 8 does not exist: 8 processes have ranks 0 to 7"):
        read({**TORCHRUN, "RANK": "8"})


def test_a_rank_that_is_no_number_is_refused() -> None:
    with pytest.raises(LaunchError, match="'x' is not a whole number"):
        read({**TORCHRUN, "WORLD_SIZE": "x"})
