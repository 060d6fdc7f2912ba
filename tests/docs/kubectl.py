"""The few verbs of kubectl that the documentation's pages use, for machines without kubectl."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import yaml

from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.resources import Resource

_BY_KIND = {one.kind: one for one in resources.ALL}
_LOOK_SECONDS = 0.2


def documents(file: str) -> list[tuple[Resource[Any], dict[str, Any]]]:
    found = [one for one in yaml.safe_load_all(Path(file).read_text()) if one]
    return [(_BY_KIND[one["kind"]], one) for one in found]


async def apply(client: KubeClient, file: str) -> None:
    for resource, body in documents(file):
        await client.apply(resource, body, "kubectl")
        print(f"{resource.kind.lower()}/{body['metadata']['name']} created")  # noqa: T201  # what kubectl prints


async def delete_namespace(client: KubeClient, name: str) -> None:
    await client.delete(resources.NAMESPACES, name)
    print(f'namespace "{name}" deleted')  # noqa: T201  # what kubectl prints


async def wait(client: KubeClient, namespace: str, names: list[str], *, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        for name in names:
            while (await client.get(resources.PODS, name.removeprefix("pod/"), namespace)).status.phase != "Running":
                await asyncio.sleep(_LOOK_SECONDS)
            print(f"{name} condition met")  # noqa: T201  # what kubectl prints


async def main() -> None:
    parser = argparse.ArgumentParser("kubectl")
    verbs = parser.add_subparsers(dest="verb", required=True)
    applying = verbs.add_parser("apply")
    applying.add_argument("-f", dest="file", required=True)
    applying.add_argument("--validate")
    deleting = verbs.add_parser("delete")
    deleting.add_argument("kind", choices=["namespace"])
    deleting.add_argument("name")
    deleting.add_argument("--wait")
    waiting = verbs.add_parser("wait")
    waiting.add_argument("-n", dest="namespace", required=True)
    waiting.add_argument("--for", dest="what", required=True, choices=["jsonpath={.status.phase}=Running"])
    waiting.add_argument("--timeout", required=True)
    waiting.add_argument("names", nargs="+")
    given = parser.parse_args()
    async with await KubeClient.connect() as client:
        if given.verb == "wait":
            seconds = float(given.timeout.removesuffix("s"))
            await wait(client, given.namespace, given.names, seconds=seconds)
        elif given.verb == "apply":
            await apply(client, given.file)
        else:
            await delete_namespace(client, given.name)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except TimeoutError:
        sys.exit("kubectl: timed out")
