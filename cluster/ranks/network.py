"""The network between the machines of a run: gloo's interface, and a limit on every wait.

gloo binds the address that the machine's own name resolves to. On many machines that is 127.0.1.1
or the like, which no other machine reaches, so the interface is taken from the route to the others.
"""

import ipaddress
import os
import socket
from datetime import timedelta

import psutil
import torch.distributed as dist
from torch.distributed import distributed_c10d

INTERFACE = "GLOO_SOCKET_IFNAME"


def meet(limit: timedelta) -> dist.Store:
    """The store through which ranks find each other, with gloo's interface chosen on its way.

    An interface that the environment names stays. Collective.

    Args:
        limit: longest wait for the others.

    Raises:
        ValueError: the machines' addresses lie on no interface.
    """
    store, rank, world = next(dist.rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    if INTERFACE not in os.environ:
        os.environ[INTERFACE] = interface_of(_own_address(store, rank, world))
    return store


def limit_new_groups(limit: timedelta) -> None:
    """Let every group that is made later, by DeepSpeed's clone of the world for one, wait as long
    as ours: torch would give it 30 minutes.
    """
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        assert hasattr(distributed_c10d, name), "this torch keeps its default timeout elsewhere"
        setattr(distributed_c10d, name, limit)


def _own_address(store: dist.Store, rank: int, world: int) -> str:
    """The address under which this rank's machine reaches the others.

    It is the sender's address on the way to MASTER_ADDR. On the first machine that may be loopback:
    it then asks for the way to another machine, each of which has left its address in the store.
    """
    master = os.environ["MASTER_ADDR"]
    mine = address_towards(master)
    machine, machines = (
        _named("CROSS_RANK", "GROUP_RANK", 0),
        _named("CROSS_SIZE", "GROUP_WORLD_SIZE", 1),
    )
    if machines == 1:
        return mine
    if not ipaddress.ip_address(mine).is_loopback:
        store.set(f"isthmus/address/{machine}", mine)
        return mine
    other = 1 if machine == 0 else 0
    try:
        return address_towards(store.get(f"isthmus/address/{other}").decode())
    except RuntimeError as silent:
        raise ValueError(
            f"MASTER_ADDR {master} is this machine itself ({mine}) on rank {rank} of {world}, and "
            f"no other machine has said its address; give --master_addr a name or address that "
            f"leads to the first machine from all others, or name the interface: {INTERFACE}"
        ) from silent


def _named(deepspeed: str, torchrun: str, default: int) -> int:
    """A number that DeepSpeed's launcher or torchrun has put into the environment."""
    return int(os.environ.get(deepspeed) or os.environ.get(torchrun) or default)


def address_towards(host: str) -> str:
    """The address of this machine on the way to another; nothing is sent.

    Raises:
        ValueError: the name does not resolve, or there is no way to it.
    """
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as no_way:
        raise ValueError(
            f"MASTER_ADDR {host}: this machine has no way there ({no_way}); give --master_addr an "
            "address of the first machine that all others reach"
        ) from no_way


def interface_of(address: str) -> str:
    """The name of the network interface that has an address.

    Raises:
        ValueError: none has.
    """
    wanted = ipaddress.ip_address(address)
    for name, found in psutil.net_if_addrs().items():
        for entry in found:
            is_ip = entry.family in (socket.AF_INET, socket.AF_INET6)
            if is_ip and ipaddress.ip_address(entry.address.partition("%")[0]) == wanted:
                return name
    if wanted.is_loopback:  # 127.0.1.1 answers without standing on the list
        return interface_of("127.0.0.1")
    raise ValueError(f"address {address} is on no interface of this machine; set {INTERFACE}")
