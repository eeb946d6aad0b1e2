"""`handmesh demo`: the bundled samples through the bundled model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from handmesh.cli.shell import JsonOption, ModelOption, check_folder, console, say_json


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")] = Path(
        "handmesh_out/demo"
    ),
    model: ModelOption = None,
    json: JsonOption = False,
) -> None:
    """Run the bundled sample images through the bundled model: a picture and meshes on your disk.

    Example:
      handmesh demo
    """
    import numpy as np

    from handmesh.files.image import encode_image, read_photo
    from handmesh.predict import load_predictor, overlay_hands, save_hands
    from handmesh.system.atomic import write_atomically

    check_folder(out)
    started = time.perf_counter()
    predictor = load_predictor(model, threads=1)
    out.mkdir(parents=True, exist_ok=True)
    columns, written = [], []
    samples = sorted((Path(__file__).parents[1] / "assets" / "samples").glob("*.jpg"))
    for path in samples:
        photo = read_photo(path)
        hands = predictor(photo, handedness="left" if "left" in path.stem else "right")
        for suffix in (".glb", ".json"):
            written.append(out / f"{path.stem}{suffix}")
            save_hands(written[-1], hands)
        mesh, bones = overlay_hands(photo.image, hands), overlay_hands(photo.image, hands, skeleton=True)
        columns.append(np.vstack([photo.image, mesh, bones]))
    picture = out / "demo.jpg"
    write_atomically(picture, encode_image(np.hstack(columns), "jpg"))
    if json:
        say_json({"picture": picture, "hands": written, "seconds": round(time.perf_counter() - started, 3)})
        return
    table = Table(title=f"{len(samples)} images in {time.perf_counter() - started:.1f} s")
    table.add_column("file")
    table.add_column("what")
    table.add_row(escape(str(picture)), "photos, meshes drawn over them, skeletons")
    table.add_row(escape(str(out / "*.glb")), "3D meshes: Blender, three.js, Windows 3D Viewer, macOS Quick Look")
    table.add_row(escape(str(out / "*.json")), "joints, keypoints, cameras, pose and shape")
    console.print(table)
    console.print("Your own photo: [bold]handmesh predict photo.jpg[/]")
