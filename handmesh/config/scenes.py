"""Settings of synthetic scenes: poses, views, things around the hand, light, skin and camera."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from handmesh.config.settings import Settings

# Names of settings in former versions, and what they are called now; packs on disk record them.
RENAMED_SCENE_KEYS = {"amplitude_mix": "fda_prob", "least_clear": "min_unoccluded", "least_visible": "min_visible"}


class SceneGroup(Settings):
    """Shares, spreads and sizes of synthetic scenes, all of them 0 or more; pairs are the ends of ranges."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for name, value in self:
            ends = value if isinstance(value, tuple) else (value,) if isinstance(value, int | float) else (0,)
            if min(ends) < 0 or list(ends) != sorted(ends):
                wanted = "two numbers from 0 on, the smaller one first" if len(ends) > 1 else "a number from 0 on"
                raise ValueError(f"{name} is {value!r}, wanted {wanted}")
        return self


class PoseSettings(SceneGroup):
    """How far poses stray from the library. Angles in radians."""

    grasps: float = 2.0  # weight of base poses that hold something, relative to the others: half of all base poses
    blend: float = 0.45  # probability that a pose lies between two base poses
    swap_fingers: float = 0.20  # probability that some fingers come from another base pose
    free: float = 0.12  # probability of independent random curls: what the library forgot
    single_fingers: float = 0.30  # probability that one to three fingers curl or stretch on their own, see `_detach`
    joint_noise: float = 0.10  # standard deviation of each flexion: people differ by 5 to 8 degrees in the same grasp
    spread_noise: float = 0.06  # standard deviation of each abduction
    fan_noise: float = 0.07  # standard deviation of the index finger's share in spreading all fingers or closing them
    touch: float = 0.0  # probability that the thumb truly touches a finger: OK signs, pinches, keys
    penetration: float = 0.005  # metres: deeper is redone; soft fingertips give 3 to 4 mm, capsules err by 1 to 2


class LightSettings(SceneGroup):
    """Shares of light that is unlike an evenly lit room, out of all scenes."""

    back: float = 0.10  # the key light behind the hand: a bright rim, the side we see in shade
    flash: float = 0.08  # a hard light at the camera
    overcast: float = 0.15  # no key light at all
    colored: float = 0.06  # neon, sunset, stage: key light or surroundings of a strong colour
    spots: tuple[int, int] = (0, 4)  # soft lamps and windows: at least, less than; of two equal numbers, as many


class SkinSettings(SceneGroup):
    """How strong the skin's detail is; ranges are of uniform draws."""

    relief: tuple[float, float] = (0.05, 0.30)  # fine bumps
    mottle: tuple[float, float] = (0.05, 0.24)  # blotches of blood and pigment
    roughness: tuple[float, float] = (0.42, 0.66)  # of the microfacets: lower is shinier
    specular: tuple[float, float] = (0.020, 0.040)  # reflectance at normal incidence; skin's is 0.028
    scatter: tuple[float, float] = (0.6, 1.3)  # how far light wraps around
    palm_lines: tuple[float, float] = (0.3, 1.3)  # depth of the creases


class CameraEffects(SceneGroup):
    """Strengths and probabilities; the defaults suit images of 100 to 300 px. All zero: the image is returned as is.

    Colour is mostly changed gently: strong colour changes cost accuracy on real photographs, because colour tells the
    palm from the back of the hand. The rare strong ones stand for lamps and cameras that do it.
    """

    white_balance: float = 0.06  # standard deviation of each channel's gain
    contrast: float = 0.10  # standard deviation of the factor
    brightness: float = 0.035  # standard deviation of the offset, of full scale
    gamma: float = 0.12  # standard deviation of its logarithm
    saturation: float = 0.15  # standard deviation of the factor
    defocus: float = 0.38  # probability; how much: `DEFOCUS_SIGMA`
    motion: float = 0.16  # probability; how much: `MOTION_LENGTH`
    low_resolution: float = 0.22  # probability: small hands in large photos are enlarged, `SMALLER` times
    sharpen: float = 0.12  # probability: phones do
    noise: float = 0.7  # probability
    vignette: float = 0.15  # probability
    jpeg: float = 0.6  # probability
    second_jpeg: float = 0.3  # probability, given one: saved, edited and saved again, its blocks shifted by a crop
    uneven_light: float = 0.25  # probability: how much: `UNEVEN_LIGHT`
    color_cast: float = 0.08  # probability of strong gains: stage light, a wrong white balance
    exposure: float = 0.16  # probability of an exposure wrong by up to 1.3 stops, clipped where it is too bright
    low_light: float = 0.05  # probability: dark, coarse noise, raised again
    grayscale: float = 0.02  # probability; rare, because grey images cost accuracy on colour ones
    flicker: float = 0.03  # probability of bands across the rows: lamps' mains flicker under a rolling shutter
    spectrum: float = 0.15  # probability of `jitter_spectrum`

    @classmethod
    def none(cls) -> CameraEffects:
        return cls(**dict.fromkeys(cls.model_fields, 0.0))


class SceneSettings(SceneGroup):
    """What is worth changing about scenes. Probabilities unless said otherwise."""

    pose: PoseSettings = PoseSettings()
    # Views: shares of the mix. Uniform covers every orientation, the others are where cameras are.
    uniform_views: float = 0.30  # 0.25 to 1.5 m
    tripod_views: float = 0.20  # cameras around a person, as FreiHAND's: any side, 0.4 to 1 m, the arm near horizontal
    selfie_views: float = 0.14  # palm or back to the camera, fingers up, 0.3 to 0.7 m
    egocentric_views: float = 0.12  # own hand seen from the head: from the wrist side, back up
    table_views: float = 0.16  # from above, any direction in the image plane
    room_views: float = 0.10  # across a room, 0.8 to 3 m
    # Share of scenes whose pose and view a real hand took (`handmesh.synth.real_poses`), in place of all the above.
    real_poses: float = 0.0
    # The longer side of the hand's box as a share of the image; below 0.45 crops waste pixels, above 0.95 they cut.
    crop_share: tuple[float, float] = (0.45, 0.95)
    off_center: float = 0.06  # standard deviation of the box centre, share of the image
    off_axis: float = 0.14  # radians, standard deviation of the hand's direction from the optical axis, per axis
    sleeve: float = 0.40  # over the forearm
    bracelet: float = 0.25  # or a watch, where there is no sleeve
    object: float = 0.85  # for poses that hold something (a third of all): real hand photos are often of hands in use
    stray_object: float = 0.08  # near the hand, whatever the pose
    occluder: float = 0.16  # something flat in front of the camera's view of the hand
    second_hand: float = 0.16  # another hand, most often the person's left one: holding, crossing or beside
    steeple: float = 0.0  # of these, in the same pose and laid against the first: finger tips, palms, fists meet
    nail_polish: float = 0.12  # on the nails
    ring: float = 0.14  # on a finger
    hair: float = 0.30  # on the back of hand and forearm
    tattoo: float = 0.04  # drawn on the skin
    glove: float = 0.05  # worn, in place of bare skin
    lights: LightSettings = LightSettings()
    skin: SkinSettings = SkinSettings()
    white_balance: float = 0.6  # share of the light's colour that the camera removes; 1 all, 0 none (not a probability)
    shadow: float = 0.5  # drop shadow on the background
    # Fourier amplitude mix: finished photographs that take on another background's coarse colours.
    fda_prob: float = 0.10
    # Fewer joints than this share inside the image and clear of other things (forearm, object, sleeve), and the scene
    # is drawn again: what cannot be seen teaches nothing. Fingers behind fingers do not count, or fists would be rare;
    # the second number bounds them, too.
    min_unoccluded: float = 0.65
    min_visible: float = 0.3  # of joints that nothing at all hides
    beta_scale: float = 1.2  # standard deviation of the shape coefficients, cut at 3: children to large adults
    effects: CameraEffects = CameraEffects()

    @model_validator(mode="after")
    def _seen_from_somewhere(self) -> Self:
        shares = {name: value for name, value in self if name.endswith("_views")}
        if not any(shares.values()):
            raise ValueError(f"{', '.join(shares)} are all 0: wanted one above, also where all poses are real")
        return self

    @classmethod
    def held_out_appearance(cls) -> SceneSettings:
        """The same hands, poses and views of an appearance that training never sees; with `Backgrounds(held_out=True)`.

        Hard light of one strong lamp and little else, shinier and smoother or much rougher skin without scattering, a
        camera that keeps the light's colour and is noisier: what a network learnt of our renderer alone fails here.
        """
        return cls(
            lights=LightSettings(back=0.2, flash=0.25, overcast=0, colored=0.25, spots=(0, 1)),
            skin=SkinSettings(
                relief=(0.35, 0.7),
                mottle=(0.28, 0.5),
                roughness=(0.25, 0.40),
                specular=(0.05, 0.08),
                scatter=(0.0, 0.3),
                palm_lines=(0.1, 0.6),
            ),
            white_balance=0.2,
            shadow=0.2,
            effects=CameraEffects(
                contrast=0.2, gamma=0.25, saturation=0.3, defocus=0.45, noise=0.9, jpeg=0.9, color_cast=0.25
            ),
        )


class TrainingPoses(PoseSettings):
    """More fingers move on their own."""

    free: float = 0.18
    swap_fingers: float = 0.25
    single_fingers: float = 0.35


class TrainingScenes(SceneSettings):
    """Renders that leave room around the hand, so that training can crop tightly or widely and turn without leaving
    the picture. Half of the views are from anywhere, for real photographs have many that the default mix hardly draws
    (measured: docs/explain/bundled_model.md).
    """

    pose: TrainingPoses = TrainingPoses()
    crop_share: tuple[float, float] = (0.38, 0.72)
    off_center: float = 0.04
    uniform_views: float = 0.50
    tripod_views: float = 0.22
    selfie_views: float = 0.08
    egocentric_views: float = 0.06
    table_views: float = 0.09
    room_views: float = 0.05
