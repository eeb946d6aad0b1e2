"""The `handmesh` command. A subcommand checks its arguments, calls the library and says what happened.

Heavy modules are imported inside the commands: `handmesh --help` answers without loading torch.
A user's mistake ends in one line on standard error and exit code 1; a wrong option in usage help and exit code 2.
"""

from __future__ import annotations

import glob
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from handmesh import __version__
from handmesh.errors import ConfigError, HandMeshError, ImageError

if TYPE_CHECKING:
    from rich.progress import Progress

app = typer.Typer(
    help="A photo of a hand goes in; a 3D hand mesh, its joints, its camera and an overlay come out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
weights_app = typer.Typer(help="Published FastViT weights: add, list, check.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
mano_app = typer.Typer(help="The user's own MANO files.", no_args_is_help=True)
app.add_typer(mano_app, name="mano")
data_app = typer.Typer(help="Data sets to train and score with: prepare, check, show.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console()
error_console = Console(stderr=True)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("glb", "obj", "ply", "npz", "json", "png", "jpg", "html")


def run() -> None:
    """Entry point: errors that are the user's to mend become one line and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=error_console)])
    try:
        app()
    except HandMeshError as error:
        _print_error(error_console, str(error))
        sys.exit(1)
    except OSError as error:  # a folder that cannot be made, a disk that is full
        _print_error(error_console, f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        error_console.print("interrupted")
        sys.exit(130)


def _print(text: str) -> None:
    """Plain, in one line: no markup, no colours, no line breaks within a path."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_error(to: Console, message: str) -> None:
    """In one line, but a manual page, which has indented lines, keeps them. Brackets are text here, not markup."""
    text = message if "\n  " in message else " ".join(message.splitlines())
    to.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"handmesh {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME|PATH", help="A model file; without it, the bundled model.")
]


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE|FOLDER|GLOB...", help="JPEG, PNG or WebP photographs.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if it is not there.")] = Path("handmesh_out"),
    format: Annotated[
        str, typer.Option(metavar=",".join(FORMATS), help="What to write, separated by commas.")
    ] = "png,glb,json",
    box: Annotated[
        list[str] | None, typer.Option(metavar="x0,y0,x1,y1", help="Where a hand is, in pixels; once for each hand.")
    ] = None,
    hand: Annotated[str, typer.Option(metavar="right|left", help="Which hand it is.")] = "right",
    focal: Annotated[float | None, typer.Option(help="Focal length in pixels; for positions in space.")] = None,
    fov: Annotated[float | None, typer.Option(help="Angle of the longer side in degrees, instead of --focal.")] = None,
    passes: Annotated[int, typer.Option(min=1, help="Looks at each hand, each closer than the one before.")] = 3,
    skeleton: Annotated[bool, typer.Option("--skeleton", help="Draw bones instead of the mesh in pictures.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out images whose results are all there: goes on with a run.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="i/n", help="Only the i-th of n parts of the images, counted from 1.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the network; more rarely help a small one.")] = 1,
    model: ModelOption = None,
) -> None:
    """Find the hand in photographs and write meshes, joints and overlays.

    Without --box the whole photograph is searched by looking ever closer; that suits photos of one hand. A file that
    cannot be read is reported and the others go on; the exit code is 0 only when all of them worked.

    Examples:
      handmesh predict photo.jpg

      handmesh predict photos/ --out results --format glb,png --skip-existing

      handmesh predict party.jpg --box 120,80,360,330 --box 500,90,700,300 --hand left
    """
    formats = _parse_formats(format)
    boxes = [_parse_box(text) for text in box] if box else None
    side = _parse_hand(hand)
    _intrinsics(focal, fov, (1, 1))  # refused here, once, and not for every photo
    jobs = list(_shard(_plan(images, out, formats), shard))
    if skip_existing:
        jobs = [job for job in jobs if not all(path.exists() for path in job[1])]
        if not jobs:
            console.print("Nothing to do: all results are there.")
            return

    from handmesh.predict import load_predictor, overlay_hands, save_predictions

    predictor = load_predictor(model, passes=passes, threads=threads)
    failed = 0
    with _progress() as progress:
        for path, targets in progress.track(jobs, description="predicting"):
            try:
                from handmesh.image import encode_image, read_photo, write_atomically

                photo = read_photo(path)
                intrinsics = _intrinsics(focal, fov, photo.image.shape)
                hands = predictor(photo, boxes=boxes, handedness=side, intrinsics=intrinsics)
                for target in targets:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if skeleton and target.suffix in (".png", ".jpg"):
                        drawn = overlay_hands(photo.image, hands, skeleton=True)
                        write_atomically(target, encode_image(drawn, target.suffix))
                    else:
                        save_predictions(target, hands, photo.image)
            except (HandMeshError, OSError) as error:
                failed += 1
                message = str(error) if isinstance(error, HandMeshError) else f"{path}: {error}"
                _print_error(progress.console, message)
    done = len(jobs) - failed
    _print(f"{done} of {len(jobs)} images done: {', '.join(formats)} in {out}/")
    if failed:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("handmesh_out/demo"),
    model: ModelOption = None,
) -> None:
    """Run the bundled sample images through the bundled model: a picture and meshes on your disk.

    Example:
      handmesh demo
    """
    import numpy as np

    from handmesh.image import encode_image, read_photo, write_atomically
    from handmesh.predict import load_predictor, overlay_hands, save_predictions

    started = time.perf_counter()
    predictor = load_predictor(model, threads=1)
    out.mkdir(parents=True, exist_ok=True)
    columns = []
    samples = sorted((Path(__file__).parent / "assets" / "samples").glob("*.jpg"))
    for path in samples:
        photo = read_photo(path)
        hands = predictor(photo, handedness="left" if "left" in path.stem else "right")
        for suffix in (".glb", ".json"):
            save_predictions(out / f"{path.stem}{suffix}", hands)
        mesh, bones = overlay_hands(photo.image, hands), overlay_hands(photo.image, hands, skeleton=True)
        columns.append(np.vstack([photo.image, mesh, bones]))
    picture = out / "demo.jpg"
    write_atomically(picture, encode_image(np.hstack(columns), "jpg"))
    table = Table(title=f"{len(samples)} images in {time.perf_counter() - started:.1f} s")
    table.add_column("file")
    table.add_column("what")
    table.add_row(escape(str(picture)), "photos, meshes drawn over them, skeletons")
    table.add_row(escape(str(out / "*.glb")), "3D meshes: Blender, three.js, Windows 3D Viewer, macOS Quick Look")
    table.add_row(escape(str(out / "*.json")), "joints, keypoints, cameras, pose and shape")
    console.print(table)
    console.print("Your own photo: [bold]handmesh predict photo.jpg[/]")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file of settings, for example configs/synthetic_t8.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/ and the config's name.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one setting; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
) -> None:
    """Train a model.

    Examples:
      handmesh train configs/synthetic_t8.yaml

      handmesh train configs/synthetic_t8.yaml --set steps=100000 --set threads=4 --out runs/long

      handmesh train configs/synthetic_t8.yaml --resume
    """
    from handmesh.config import load_config
    from handmesh.train import Progressed
    from handmesh.train import train as run_training

    logging.getLogger("handmesh").setLevel(logging.INFO)
    settings = load_config(config, set_ or [])
    directory = out or Path("runs") / config.stem
    with _progress() as progress:
        rendering = progress.add_task("rendering", total=None, visible=False)
        training = progress.add_task("training", total=settings.steps, visible=False)

        def on_render(done: int, total: int) -> None:
            progress.update(rendering, completed=done, total=total, visible=done < total)

        def on_progress(now: Progressed) -> None:
            text = (
                f"training  loss {now.losses['total']:.3f}  2D {now.losses['keypoints']:.3f}  "
                f"vertices {1000 * now.losses['vertices']:.1f} mm  {now.images_per_second:.0f} images/s  "
                f"waiting for data {now.waiting_share:.0%}"
            )
            progress.update(training, completed=now.step, visible=True, description=text)

        path = run_training(settings, directory, resume=resume, on_progress=on_progress, on_render=on_render)
    _print(f"Done: {path}")


@app.command()
def synth(
    sheet: Annotated[Path | None, typer.Option(help="Draw a contact sheet into this picture.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a data set (JPEG, masks, labels.jsonl) into this folder.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many hands.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=512, help="Side of the images in pixels.")] = 224,
    labels: Annotated[bool, typer.Option("--labels", help="Draw the labels on the sheet.")] = False,
    backgrounds: Annotated[Path | None, typer.Option(help="Folder of images to use as backgrounds too.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 1,
    like_freihand: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a data set in FreiHAND's own folder layout.")
    ] = None,
    evaluation: Annotated[
        int | None, typer.Option(min=1, help="Test images with --like-freihand; default: an eighth of --count.")
    ] = None,
    hand_model: Annotated[
        str, typer.Option(metavar="builtin|mano", help="The hand that --like-freihand draws.")
    ] = "builtin",
) -> None:
    """Draw synthetic hands, with exact labels.

    Examples:
      handmesh synth --sheet sheet.png --count 40 --seed 1 --labels

      handmesh synth --out hands/ --count 10000 --workers 4

      handmesh synth --like-freihand FreiHAND_synthetic/ --count 400
    """
    if sum(place is not None for place in (sheet, out, like_freihand)) != 1:
        raise ConfigError("Where to draw? Give either --sheet PICTURE, --out FOLDER or --like-freihand FOLDER.")
    if like_freihand is not None:
        if size != 224 or labels or workers != 1:
            raise ConfigError("FreiHAND's images have 224 px: --size, --labels and --workers are not for it.")
        _synth_like_freihand(like_freihand, count, evaluation, seed, backgrounds, hand_model)
        return
    if evaluation is not None or hand_model != "builtin":
        raise ConfigError("--evaluation and --hand-model go with --like-freihand only.")
    if sheet is not None and sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(f"--sheet {sheet}: wanted a picture's name that ends in {', '.join(IMAGE_SUFFIXES)}.")
    from handmesh.hand import builtin_hand
    from handmesh.image import encode_image, write_atomically
    from handmesh.synth import Backgrounds, SceneRenderer, contact_sheet, sample_generator, write_dataset

    with _progress() as progress:
        task = progress.add_task("rendering", total=count)
        if out is not None:

            def report(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            write_dataset(out, count, seed, size=size, workers=workers, progress=report, background_folder=backgrounds)
            return

        def drawn() -> Iterator[Any]:
            renderer = SceneRenderer(builtin_hand(), size=size, backgrounds=Backgrounds(folder=backgrounds))
            for index in range(count):
                yield renderer.render(sample_generator(seed, index))
                progress.update(task, advance=1)

        columns = min(count, max(1, round(math.sqrt(count * 1.6))))
        picture = contact_sheet(drawn(), columns, labels)
    assert sheet is not None
    sheet.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(sheet, encode_image(picture, sheet.suffix))
    _print(f"{count} hands: {sheet}")


@app.command()
def bench(
    backbones: Annotated[
        bool, typer.Option("--backbones", help="The FastViT family, folded against unfolded.")
    ] = False,
    names: Annotated[str, typer.Option(metavar="NAME,...", help="Backbones, separated by commas, or all.")] = "all",
    engines: Annotated[
        str, typer.Option(metavar="torch,onnxruntime", help="Engines, separated by commas.")
    ] = "torch,onnxruntime",
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each engine; default: all cores.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 20,
    processor_time: Annotated[
        bool, typer.Option("--processor-time", help="Do not count while other programs run; needs --threads 1.")
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write machine and rows into this file.")] = None,
) -> None:
    """Measure on this machine: parameters, multiply-adds, and milliseconds on each engine.

    Weights are random, which changes no time. Everything compared takes turns, so a busy machine disturbs all alike.

    Examples:
      handmesh bench --backbones

      handmesh bench --backbones --names fastvit_t8,fastvit_ma36 --size 224 --batch 8 --threads 2 --json bench.json
    """
    if not backbones:
        raise ConfigError("Nothing to measure: say what, for example `handmesh bench --backbones`.")
    from handmesh.backbone import VARIANTS
    from handmesh.bench import as_json, bench_backbones, describe_machine
    from handmesh.image import write_atomically

    chosen = tuple(VARIANTS) if names == "all" else _parse_list(names)
    chosen_engines = _parse_list(engines)
    machine = describe_machine()
    table = Table(caption=f"{machine['processor']}, torch {machine['torch']}, onnxruntime {machine['onnxruntime']}")
    for title in ("model", "form"):
        table.add_column(title, no_wrap=True)
    for title in ("M params", "G mult-adds", *(f"{engine} ms" for engine in chosen_engines)):
        table.add_column(title, justify="right")
    rows = []
    measured = bench_backbones(
        chosen,
        size=size,
        batch=batch,
        threads=threads,
        engines=chosen_engines,
        runs=runs,
        clock="processor" if processor_time else "wall",
    )
    with _progress() as progress:
        for of_model in progress.track(measured, total=len(chosen), description="measuring"):
            rows += of_model
            for form in ("unfolded", "folded"):
                of_form = [row for row in of_model if row.form == form]
                table.add_row(
                    of_model[0].model if form == "unfolded" else "",
                    form,
                    f"{of_form[0].parameters / 1e6:.2f}",
                    f"{of_form[0].multiply_adds / 1e9:.2f}",
                    *(f"{row.network_ms:.1f}" for row in of_form),
                )
    table.title = (
        f"{size} px, batch {batch}, {rows[0].threads} thread(s), float32; {rows[0].clock} time, median of {runs} runs"
    )
    console.print(table)
    if json is not None:
        write_atomically(json, as_json(machine, rows).encode())
        _print(f"Written: {json}")


@weights_app.command("add")
def weights_add(
    file: Annotated[Path, typer.Argument(help="Apple's .pth.tar or timm's .safetensors, .bin or .pth.")],
    name: Annotated[str | None, typer.Option(help="How configs will call them; default: the variant's name.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the file came from, for the record.")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence, if it is not Apple's.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put them in the place of others of that name.")] = False,
) -> None:
    """Convert a downloaded checkpoint once, and keep it under a name that training configs can use.

    Examples:
      handmesh weights add fastvit_ma36.pth.tar

      handmesh weights add model.safetensors --name fastvit_t8_distilled --source https://huggingface.co/timm/...
    """
    from handmesh.weights import add_backbone_weights

    stored = add_backbone_weights(file, name, source=source, licence=licence, replace=replace)
    _print(f"{stored.name}: {stored.variant}, {_form(stored.folded)}, {_classes(stored.num_classes)}")
    _print(f"file: {stored.path}")
    _print(f"licence: {stored.licence}")


@weights_app.command("list")
def weights_list() -> None:
    """List the weights that were added, where they came from and under which licence.

    Example:
      handmesh weights list
    """
    from handmesh.weights import list_backbone_weights, weights_folder

    found = list_backbone_weights()
    if not found:
        _print(f"No weights in {weights_folder()} yet.")
        return
    _print(f"{weights_folder()}:")
    damaged = []
    for entry in found:
        if isinstance(entry, HandMeshError):
            damaged.append(entry)
            continue
        _print(f"{entry.name}: {entry.variant}, {_form(entry.folded)}, {_classes(entry.num_classes)}")
        _print(f"    from {entry.source}, sha256 {entry.source_sha256[:12]}..., added {entry.added[:10]}")
        _print(f"    licence: {entry.licence}")
    for error in damaged:
        _print_error(error_console, str(error))
    if damaged:
        raise typer.Exit(1)


@weights_app.command("check")
def weights_check(
    name: Annotated[str, typer.Argument(help="Weights that were added; `handmesh weights list` shows them.")],
    imagenet: Annotated[Path, typer.Option(metavar="DIR", help="Validation images in one sub-folder per class.")],
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; default: torch's own.")] = None,
) -> None:
    """Measure top-1 accuracy on ImageNet's validation images, with the published preprocessing.

    Example:
      handmesh weights check fastvit_t8 --imagenet imagenet/val
    """
    import torch

    from handmesh.imagenet import RELEASED_TOP1, load_classifier, top1

    if threads is not None:
        torch.set_num_threads(threads)
    classifier = load_classifier(name).to("cuda" if torch.cuda.is_available() else "cpu")
    with _progress() as progress:
        task = progress.add_task("classifying", total=None)

        def report(correct: int, done: int, total: int) -> None:
            text = f"classifying  top-1 {100 * correct / done:.2f} %"
            progress.update(task, completed=done, total=total, description=text)

        score = top1(classifier, imagenet, batch_size=batch, on_progress=report)
    plain, distilled = RELEASED_TOP1[classifier.name]
    _print(
        f"{name}: top-1 {score.percent:.2f} % of {score.total} images (standard error {score.standard_error:.2f}), "
        f"{score.total / score.seconds:.1f} images/s"
    )
    _print(f"released for {classifier.name} on ImageNet's 50000 images: {plain} %, distilled {distilled} %")


def _synth_like_freihand(
    folder: Path, count: int, evaluation: int | None, seed: int, backgrounds: Path | None, hand_model: str
) -> None:
    from handmesh.data.like_freihand import write_like_freihand
    from handmesh.mano_file import load_hand
    from handmesh.synth import Backgrounds

    name = _parse_hand_model(hand_model)
    hand = load_hand(name)
    test_images = evaluation or max(1, count // 8)
    with _progress() as progress:
        task = progress.add_task("rendering", total=count + test_images)
        write_like_freihand(
            folder,
            count,
            test_images,
            seed,
            hand=hand,
            hand_name=name,
            backgrounds=Backgrounds(seed, folder=backgrounds),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _print(f"{count} hands in 4 versions, {test_images} test images: {folder}")
    _print(f"next: handmesh data prepare {folder}")


@mano_app.command("add")
def mano_add(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="MANO_RIGHT.pkl, MANO_LEFT.pkl.")],
    fix_left_shape: Annotated[
        bool,
        typer.Option(
            "--fix-left-shape",
            help="Mend the left hand's shape directions; not for betas that were fitted with the file as published.",
        ),
    ] = False,
) -> None:
    """Check MANO's files without executing anything in them, and keep their arrays where handmesh finds them.

    Get the files at https://mano.is.tue.mpg.de (registration, non-commercial research). Where smplx is installed, our
    hand layer is compared with its own on each file.

    Examples:
      handmesh mano add mano_v1_2/models/MANO_RIGHT.pkl

      handmesh mano add mano_v1_2/models/MANO_RIGHT.pkl mano_v1_2/models/MANO_LEFT.pkl --fix-left-shape
    """
    from handmesh.hand import Handedness
    from handmesh.mano_check import difference_from_smplx
    from handmesh.mano_file import add_mano, handedness_of, read_mano

    # All are read before any is kept; right hands first, since a left one is compared with them.
    sides = {file: handedness_of(read_mano(file)) for file in files}
    for file in sorted(files, key=lambda name: sides[name] == Handedness.LEFT):
        added = add_mano(file, fix_left_shape=fix_left_shape and sides[file] == Handedness.LEFT)
        kind = "the published file" if added.original else "not byte for byte the published file, but sound"
        _print(f"{file}: {added.handedness} hand, {kind}")
        _print(f"kept as {added.path} (under MANO's licence; identity {added.arrays.sha256[:12]})")
        if added.left_shape_fixed:
            _print("its shape directions were those of the right hand: mended")
        elif added.left_shape_bug:
            _print(
                "its shape directions are those of the right hand, as in the published file: betas do not mirror. "
                "--fix-left-shape mends it; leave it for betas that were fitted with that file"
            )
        difference = difference_from_smplx(added.arrays)
        if difference is None:
            _print("not compared with smplx, which is not installed: pip install 'handmesh[mano]'")
        else:
            _print(f"our layer against smplx's own: vertices differ by at most {1e6 * difference:.2g} micrometres")
    if fix_left_shape and Handedness.LEFT not in sides.values():
        raise ConfigError("--fix-left-shape is for left hands, and none was given. The right one was added.")


@data_app.command("prepare")
def data_prepare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="FreiHAND's zips, or the folder they unpack to.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the result; default: DIR/prepared.")] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="Join the JPEG files into one; from zips that always happens.")
    ] = False,
) -> None:
    """Turn FreiHAND's JSON files into memory maps, once. Interrupted, it goes on where it was.

    Examples:
      handmesh data prepare FreiHAND/

      handmesh data prepare FreiHAND/ --out /fast/disk/freihand --pack
    """
    from handmesh.data.freihand import FreiHand, available_splits, prepare

    with _byte_progress() as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        result = prepare(folder, out, pack=pack, progress=report)
    for split in available_splits(result):
        data = FreiHand(result, split)
        _print(f"{split}: {data.annotation_count} annotations, {len(data)} images ({', '.join(data.versions)})")
    _print(f"Ready: {result}")
    _print(f"next: handmesh data check {folder if out is None else out}")


@data_app.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A prepared FreiHAND folder, or a JSONL file.")],
    images: Annotated[int, typer.Option(min=1, help="Pictures to decode, spread over the set.")] = 200,
) -> None:
    """Check that a data set is what it claims to be: a table of what was wanted and what was found.

    The exit code is 0 only when nothing failed.

    Examples:
      handmesh data check FreiHAND/

      handmesh data check photos/labels.jsonl
    """
    from handmesh.data.check import check

    with _progress() as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        rows = check(path, images, report)
    table = Table(title=Text(str(path)))
    for title in ("", "claim", "wanted", "found"):
        table.add_column(title, overflow="fold")
    for row in rows:
        mark = {True: "[green]pass[/]", False: "[bold red]FAIL[/]", None: "[dim]-[/]"}[row.passed]
        table.add_row(mark, *map(escape, (row.subject, row.wanted, row.found)))
    console.print(table)
    failed = sum(row.passed is False for row in rows)
    unchecked = sum(row.passed is None for row in rows)
    _print(f"{len(rows) - failed - unchecked} passed, {failed} failed, {unchecked} without a verdict")
    if failed:
        raise typer.Exit(1)


@data_app.command("show")
def data_show(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A prepared FreiHAND folder, or a JSONL file.")],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("handmesh_out/data.jpg"),
    count: Annotated[int, typer.Option(min=1, help="How many samples.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Which samples: the same seed, the same ones.")] = 0,
    split: Annotated[str | None, typer.Option(metavar="training|evaluation", help="FreiHAND's part.")] = None,
    protocol: Annotated[
        str | None, typer.Option(metavar="frame|metro|box", help="How to crop; default: frame, or box for a JSONL.")
    ] = None,
    mesh: Annotated[bool, typer.Option("--mesh", help="Draw the labelled mesh instead of bones.")] = False,
    hand_model: Annotated[
        str, typer.Option(metavar="builtin|mano", help="Whose triangles --mesh draws for a JSONL file.")
    ] = "builtin",
) -> None:
    """Draw a contact sheet of a data set with its labels.

    Examples:
      handmesh data show FreiHAND/ --out sheet.jpg

      handmesh data show photos/labels.jsonl --count 60
    """
    if out.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(f"--out {out}: wanted a picture's name that ends in {', '.join(IMAGE_SUFFIXES)}.")
    from handmesh.data.show import show
    from handmesh.image import encode_image, write_atomically

    model = _parse_hand_model(hand_model)
    picture = show(path, count, seed, split=split, protocol=protocol, mesh=mesh, hand=model)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, encode_image(picture, out.suffix))
    _print(f"{out}")


@app.command()
def evaluate(
    predictions: Annotated[
        Path | None, typer.Option(metavar="pred.json|pred.zip", help="Score this file of FreiHAND's official form.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The test set that belongs to --predictions.")
    ] = None,
    model: ModelOption = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run the model on this test set: FreiHAND, or labels.jsonl.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(metavar="frame|metro|box|box-from-test-labels|predict", help="What the network sees.")
    ] = "frame",
    margin: Annotated[
        float | None, typer.Option(min=0.5, help="Crop side over the box's, where boxes are used.")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="Looks at each hand under protocol predict.")] = 3,
    tta: Annotated[
        str, typer.Option(metavar="none|small|metro|SCALES:DEGREES", help="Average over scales and turns.")
    ] = "none",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images of --data.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for scores.json, frames.npz, report.html.")] = Path("evaluation"),
    against: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Compare with an earlier run's folder, frame by frame.")
    ] = None,
    save_predictions: Annotated[
        Path | None, typer.Option(metavar="pred.zip", help="Write the model's answers in the official form.")
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html, too.")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that score; default: all cores.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network.")] = None,
) -> None:
    """Score a model, or anybody's prediction file, as FreiHAND's official tool does.

    Examples:
      handmesh evaluate --predictions pred.zip --ground-truth FreiHAND/

      handmesh evaluate --model runs/ma36/model.safetensors --data FreiHAND/ --protocol frame --tta metro

      handmesh synth --out hands/ --count 500 && handmesh evaluate --data hands/ --protocol predict
    """
    from handmesh.evaluate_run import EvaluationRequest, print_evaluation, run_evaluation

    if (predictions is None) == (data is None):
        raise ConfigError("Give either --predictions FILE --ground-truth DIR, or --data DIR with or without --model.")
    if predictions is not None and ground_truth is None:
        raise ConfigError("--predictions needs --ground-truth DIR: the test set that they answer.")
    request = EvaluationRequest(
        predictions=predictions,
        data=ground_truth if data is None else data,
        model=model,
        protocol=protocol,
        margin=margin,
        passes=passes,
        tta=tta,
        limit=limit,
        out=out,
        against=against,
        save_predictions=save_predictions,
        report=report,
        workers=workers,
        threads=threads,
    )
    with _progress() as progress:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        result = run_evaluation(request, show)
    print_evaluation(result, console)


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: 127.0.0.1, this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: 8000. 0: any free one.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send; or set HANDMESH_TOKEN.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen publicly without a token: a proxy in front asks who calls.")
    ] = False,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Web pages of this origin may call; repeatable.")
    ] = None,
    passes: Annotated[int | None, typer.Option(min=1, max=10, help="Looks at each hand; default: 3.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; default: torch's own.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Crops per batch; default: 1 on a CPU, 16 on CUDA.")
    ] = None,
    queue_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Hands in work at a time; more are answered 429. Default: 64.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds until a request is answered 504; default: 10.")
    ] = None,
    model: ModelOption = None,
) -> None:
    """Answer over HTTP: POST a photo to /v1/hands, get JSON, GLB, NPZ or an overlay.

    Every option, and several more, can also be set by a variable, such as HANDMESH_QUEUE_SIZE; an option wins.
    docs/serving.md has the list. SIGTERM or Ctrl-C finishes what is in work and ends.

    Examples:
      handmesh serve

      curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/hands -H "Accept: image/png" -o overlay.png

      HANDMESH_TOKEN=$(openssl rand -hex 24) handmesh serve --host 0.0.0.0
    """
    from handmesh_server.run import serve as run_server
    from handmesh_server.settings import Settings

    settings = Settings.from_environment(
        host=host,
        port=port,
        token_file=token_file,
        insecure=insecure or None,
        cors_origins=tuple(cors) if cors else None,
        passes=passes,
        threads=threads,
        max_batch=max_batch,
        queue_size=queue_size,
        deadline_seconds=deadline,
        model=model,
    )
    run_server(settings, announce=lambda address: _print(f"Serving on {address}  (Ctrl-C ends it)"))


@app.command()
def doctor() -> None:
    """Check this installation: versions, device, model files, and one tiny inference.

    Example:
      handmesh doctor
    """
    from handmesh.doctor import examine

    table = Table(show_header=False)
    for _ in range(3):
        table.add_column()
    healthy = True
    for finding in examine():
        healthy &= finding.good is not False
        mark = {True: "[green]ok[/]", False: "[bold red]bad[/]", None: "[dim]-[/]"}[finding.good]
        table.add_row(mark, escape(finding.subject), escape(finding.fact))
    console.print(table)
    if not healthy:
        raise typer.Exit(1)


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=error_console)


def _byte_progress() -> Progress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=error_console)


def _parse_hand_model(text: str) -> Literal["mano", "builtin"]:
    if text == "mano":
        return "mano"
    if text != "builtin":
        raise ConfigError(f"--hand-model {text!r}: wanted builtin or mano.")
    return "builtin"


def _form(folded: bool) -> str:
    return "folded, for inference only" if folded else "train-time form"


def _classes(count: int) -> str:
    return f"{count} classes" if count else "no classifier"


def _parse_list(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _parse_formats(text: str) -> list[str]:
    formats = [part.strip().lower().removeprefix(".") for part in text.split(",") if part.strip()]
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ConfigError(f"--format {text!r}: {', '.join(unknown) or 'nothing'} is not one of {', '.join(FORMATS)}.")
    return list(dict.fromkeys(formats))


def _parse_box(text: str) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--box {text!r}: wanted four numbers x0,y0,x1,y1 in pixels, for example 120,80,360,330."
        ) from None
    if not (x0 < x1 and y0 < y1 and all(map(math.isfinite, (x0, y0, x1, y1)))):
        raise ConfigError(f"--box {text!r}: the box is empty, wanted x0 < x1 and y0 < y1.")
    return x0, y0, x1, y1


def _parse_hand(text: str) -> str:
    if text not in ("right", "left"):
        raise ConfigError(f"--hand {text!r}: wanted right or left.")
    return text


def _intrinsics(focal: float | None, fov: float | None, shape: Sequence[int]) -> Any:
    from handmesh.camera import Intrinsics

    height, width = shape[:2]
    if focal is not None and fov is not None:
        raise ConfigError("--focal and --fov say the same thing in two ways: give one of them.")
    if focal is not None:
        return Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2)
    return None if fov is None else Intrinsics.from_fov(math.radians(fov), width, height)


def _plan(arguments: Sequence[str], out: Path, formats: Sequence[str]) -> list[tuple[Path, list[Path]]]:
    """(image, its result files) for all images; results never collide, whatever the images are called."""
    images: list[tuple[Path, Path]] = []  # (image, where its results go, without suffix)
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
            if path.resolve() in out.resolve().parents:  # the pictures of an earlier run are results, not photographs
                found = [file for file in found if out.resolve() not in file.resolve().parents]
            if not found:
                raise ImageError(f"No images in {path}: wanted files that end in {', '.join(IMAGE_SUFFIXES)}.")
            images += [(file, file.relative_to(path).with_suffix("")) for file in found]
        elif path.is_file() or not glob.has_magic(argument):
            images.append((path, Path(path.stem)))
        else:
            matches = sorted(match for match in map(Path, glob.glob(argument, recursive=True)) if match.is_file())
            if not matches:
                raise ImageError(f"Nothing matches {argument}.")
            images += [(match, Path(match.stem)) for match in matches]
    images = list(dict.fromkeys(images))
    taken: set[Path] = set()
    plan = []
    for image, stem in images:
        free, number = stem, 1
        while free in taken:  # the same name in two places, or with two suffixes
            number += 1
            free = stem.with_name(f"{stem.name}_{number}")
        taken.add(free)
        plan.append((image, [out / free.with_name(f"{free.name}.{format}") for format in formats]))
    photos = {image.resolve() for image, _ in images}
    for _, targets in plan:
        for target in targets:
            if target.resolve() in photos:
                raise ConfigError(f"The result {target} would replace a photograph: give another folder as --out.")
    return plan


def _shard(jobs: list[tuple[Path, list[Path]]], text: str | None) -> list[tuple[Path, list[Path]]]:
    if text is None:
        return jobs
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"--shard {text!r}: wanted i/n with i from 1 to n, for example 2/4.")
    return jobs[int(part) - 1 :: int(parts)]
