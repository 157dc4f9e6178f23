"""`roost`: run the operator, check a cluster, play on a laptop."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from roost import __version__
from roost.housekeeping import cli as housekeeping

if TYPE_CHECKING:
    from roost.kube.cluster import Cluster
    from roost.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="roost", description=__doc__)
    parser.add_argument("--version", action="version", version=f"roost {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    operators = [
        commands.add_parser(name, help=text, description=text)
        for name, text in (
            ("run", "run the operator, in a Pod or against a kubeconfig"),
            ("doctor", "say in sentences what a cluster lacks; exit code 1 when it lacks something"),
        )
    ]
    for command in (*operators, *housekeeping.add_arguments(commands)):
        command.add_argument(
            "--config", type=Path, help="settings file (YAML); docs/reference/settings.md lists the keys"
        )
        command.add_argument("--kubeconfig", help="use this kubeconfig and not the Pod's service account")
    local = commands.add_parser("local", help="a real Kubernetes API, a simulated Fly and the operator on this machine")
    # Late: what a laptop needs stays out of the memory of an operator in a cluster.
    if "local" in (sys.argv[1:] if argv is None else argv)[:1]:
        from roost.local import cli as local_cli

        local_cli.add_arguments(local)
    arguments = parser.parse_args(argv)
    if arguments.command == "local":
        return local_cli.run(arguments)
    return _operator(arguments)


def _operator(arguments: argparse.Namespace) -> int:
    from roost.engine.leader import LeaseLost
    from roost.kube.client import KubeError
    from roost.kube.cluster import NoCluster, find_cluster
    from roost.kube.roots import LostRoots
    from roost.settings import BadSettings, load

    try:
        settings, cluster = load(arguments.config), find_cluster(arguments.kubeconfig)
        if arguments.command == "doctor":
            return asyncio.run(_doctor(cluster, settings.namespace))
        if arguments.command in housekeeping.COMMANDS:
            return housekeeping.run(arguments, settings, cluster)
        from roost.telemetry.logs import set_up

        set_up(settings.log_level)
        return _run(settings, cluster)
    except (BadSettings, NoCluster, LostRoots, LeaseLost, KubeError, OSError) as error:
        print(f"roost: {error}", file=sys.stderr)
        return 2 if arguments.command in housekeeping.COMMANDS else 1


def _run(settings: "Settings", cluster: "Cluster") -> int:
    import uvloop

    from roost.run import Operator

    async def operate() -> None:
        await Operator(settings, cluster).run()

    _forbid_core_dumps()
    uvloop.run(operate())
    return 0


def _forbid_core_dumps() -> None:
    """The memory of the operator holds roots, tokens and values (prctl(2), PR_SET_DUMPABLE)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)


async def _doctor(cluster: "Cluster", namespace: str) -> int:
    from roost.intake.checks import problems
    from roost.kube.client import Kube
    from roost.telemetry.metrics import Metrics

    async with Kube(cluster, Metrics()) as kube:
        lacking = await problems(kube, namespace)
    for sentence in lacking:
        print(sentence)
    if not lacking:
        print("This cluster has everything that Roost needs.")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
