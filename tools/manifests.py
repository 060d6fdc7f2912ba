"""Renders deploy/kustomize from the Helm chart, so that both say the same: the chart is the one source.

Each directory of the chart's templates becomes a base or a component of kustomize, with the chart's default values;
overlays are written by hand and only choose components. `make manifests` runs it; tests/deploy holds the result.

    python tools/manifests.py [--helm PATH]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm/dpu-offload"
KUSTOMIZE = ROOT / "deploy/kustomize"
RELEASE = "dpu-offload"
# helm's own default is years older than what the chart asks for.
KUBERNETES = "1.36.0"
PARTS = ("ovn", "network", "networkDpu", "storage", "storageDpu", "kubevirt", "monitoring")
HEADER = "# Rendered from deploy/helm/dpu-offload/{source} by `make manifests`: change it there.\n"


def render(helm: Path, arguments: list[str]) -> str:
    """`helm template` of the chart; raises RuntimeError with helm's words."""
    command = [str(helm), "template", RELEASE, str(CHART), "--kube-version", KUBERNETES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"helm template failed: {done.stderr.strip()}")
    return done.stdout


def files(helm: Path) -> dict[Path, str]:
    """Every rendered file below deploy/kustomize, with its contents."""
    found: dict[Path, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        switches = [word for part in PARTS for word in ("--set", f"parts.{part}=true")]
        render(helm, [*switches, "--output-dir", directory])
        templates = Path(directory) / RELEASE / "templates"
        for path in sorted(templates.rglob("*.yaml")):
            part = path.parent.name
            place = Path("base") if part == "base" else Path("components") / part
            source = path.relative_to(templates.parent)
            lines = [line for line in path.read_text().splitlines() if not line.startswith("# Source: ")]
            text = "\n".join(line.rstrip() for line in lines).strip("-\n")
            found[place / path.name] = HEADER.format(source=source) + text + "\n"
    for place in sorted({path.parent for path in found}):
        names = sorted(path.name for path in found if path.parent == place)
        kind = ("v1beta1", "Kustomization") if place == Path("base") else ("v1alpha1", "Component")
        found[place / "kustomization.yaml"] = (
            HEADER.format(source=f"templates/{place.name}")
            + f"apiVersion: kustomize.config.k8s.io/{kind[0]}\nkind: {kind[1]}\nresources:\n"
            + "".join(f"  - {name}\n" for name in names)
        )
    return found


def main() -> int:
    """Write what differs, remove what is rendered no more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "build/bin/helm"
    parser.add_argument("--helm", type=Path, default=default if default.exists() else shutil.which("helm"))
    arguments = parser.parse_args()
    if arguments.helm is None:
        sys.exit("manifests: helm is neither in build/bin nor on PATH; tools/setup --tests installs it where Go is")
    wanted = files(arguments.helm)
    for directory in ("base", "components"):
        for path in (KUSTOMIZE / directory).rglob("*.yaml"):
            if path.relative_to(KUSTOMIZE) not in wanted:
                path.unlink()
    for path, text in wanted.items():
        target = KUSTOMIZE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
