"""A process that is stopped keeps its connections; it is dropped all the same, and is here again when it goes on."""

import signal
from pathlib import Path

from .fakes import HERE, Up, eventually, here, said


def test_a_frozen_process_leaves_the_mesh_and_is_back_when_it_goes_on(tmp_path: Path) -> None:
    kitchen, attic = tmp_path / "kitchen", tmp_path / "attic"
    said("mesh", "create", "home", home=kitchen)
    nodes = list[Up]()
    try:
        nodes.append(Up(kitchen, "--name", "kitchen").ready())
        said("join", said("invite", home=kitchen), *HERE, home=attic)
        nodes.append(Up(attic, "--name", "attic").ready())
        eventually(lambda: here(kitchen) == here(attic) == {"kitchen", "attic"}, *nodes)

        nodes[1].signal(signal.SIGSTOP)
        eventually(lambda: here(kitchen) == {"kitchen"}, nodes[0])
        assert "answered neither this node nor others that tried" in nodes[0].err

        nodes[1].signal(signal.SIGCONT)
        eventually(lambda: here(kitchen) == here(attic) == {"kitchen", "attic"}, *nodes)
        assert "dropping" not in nodes[1].err, "who was away declares nobody dead"
    finally:
        for node in nodes:
            node.signal(signal.SIGCONT)
            node.end()
