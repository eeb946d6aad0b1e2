"""One synthetic photograph of a right hand, with everything that is known about it.

A scene is a pose (`pose_prior`), a view, a forearm that continues the wrist, perhaps a sleeve, a bracelet, a held
object or something in front, skin, light and a background. The hand's mesh comes from the standard linear blend
skinning of MANO's format, so labels are exact: `vertices == HandModel(pose, betas).vertices + translation`.

Frames: "cam" is the OpenCV camera frame of the image in metres; keypoints are pixels with centres at integers.
Everything about the hand's surface is computed from `HandArrays`, so any right hand in that format can be rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.config.scenes import SceneSettings
from handmesh.hand import FINGERTIP_VERTICES, JOINT_NAMES, JOINTS_FROM_MANO, HandArrays
from handmesh.hand.anatomy import bone_ends, palm_frame, surface_anatomy
from handmesh.synth import objects, parts
from handmesh.synth import shade as kernels
from handmesh.synth.backgrounds import Backgrounds, skin_color
from handmesh.synth.camera_effects import camera_effects, mix_amplitude, place_on_background
from handmesh.synth.pose_prior import PosePrior, bone_segments, forward_kinematics
from handmesh.synth.real_poses import RealPoses, palm_axes
from handmesh.synth.shade import Appearance, Channel, Material

Floats = NDArray[np.float64]
Float32Array = NDArray[np.float32]

# A joint counts as visible when the hand's own surface is at most this far in front of it, metres: its own flesh, not
# another finger or the far side of the palm.
_OWN_FLESH = {"tip": 0.020, "dip": 0.018, "pip": 0.020, "ip": 0.020, "mcp": 0.030, "cmc": 0.036, "wrist": 0.036}
SELF_OCCLUSION = np.array([_OWN_FLESH[name.split("_")[-1]] for name in JOINT_NAMES])

_DIRECTIONS = 24  # of environment light; each costs a 56 x 56 shadow map
_ENVIRONMENT_RESOLUTION = 56
_SHADOW_RESOLUTION = 144
_NEAREST = 0.06  # metres from the camera to whatever is nearest
_ATTEMPTS = 6  # scenes tried until enough of the hand shows


@dataclass(frozen=True, eq=False)
class Shot:
    """A hand and a camera that are given, so that only the rest of a scene is random: a frame of a clip, say."""

    rotations: Floats  # (16, 3, 3) parent-relative, of the fingers; [0] is the identity, see `rotation`
    betas: Floats  # (10,)
    rotation: Floats  # (3, 3): cam from (lateral, distal, dorsal), see `view_rotation`
    place: Floats  # (3,) m, cam: where the middle of the vertices is
    intrinsics: Floats  # (3, 3) px


@dataclass(frozen=True, eq=False)
class SyntheticSample:
    """A rendered hand and its labels; S is the image's side."""

    image: NDArray[np.uint8]  # (S, S, 3) RGB
    alpha: NDArray[np.uint8]  # (S, S) coverage of all that is in front of the background
    mask: NDArray[np.uint8]  # (S, S) coverage by the hand itself, wrist to tips, where it is what is seen
    keypoints: Float32Array  # (21, 2) px, centres at integers
    visible: NDArray[np.bool_]  # (21,) inside the image and not hidden, see `SceneRenderer`
    joints: Float32Array  # (21, 3) m, cam; regressed from the posed mesh, plus the tip vertices
    vertices: Float32Array  # (778, 3) m, cam
    pose: Float32Array  # (16, 3, 3) parent-relative rotations; [0] is the orientation in the camera's axes
    betas: Float32Array  # (10,)
    translation: Float32Array  # (3,) m: vertices == HandModel(pose, betas).vertices + translation
    intrinsics: Float32Array  # (3, 3) px
    facts: Mapping[str, float | str]  # what was drawn: pose, view, object, skin tone ITA in degrees, hidden share, ...


@dataclass(frozen=True, eq=False)
class _Hand:
    """The posed hand, wrist at its rest place, fingers not yet turned towards a camera. float64 unless said."""

    rotations: Floats  # (16, 3, 3), [0] the identity
    betas: Floats
    vertices: Float32Array  # (778, 3)
    segments: Floats  # (20, 2, 3) bones, see `pose_prior.bone_segments`
    rest_wrist: Floats  # (3,) of the shaped hand
    pose_name: str
    holds: str


class SceneRenderer:
    """Draws random scenes. Not thread safe (it reuses buffers); build one per process.

    A joint is `visible` when it lies inside the image, no object, sleeve, bracelet or occluder is in front of it, and
    of the hand's own surface only its own flesh is: at most `SELF_OCCLUSION` in front, 18 mm for a finger joint to
    36 mm for the wrist.
    """

    def __init__(
        self,
        hand: HandArrays,
        settings: SceneSettings | None = None,
        size: int = 224,
        supersample: int = 2,
        backgrounds: Backgrounds | None = None,
    ) -> None:
        """`size` px per side, `supersample`^2 samples per pixel. Without `backgrounds` a bank of 256 is made (1.5 s).

        Raises ValueError for sizes outside 32..512 and for a left hand.
        """
        if not 32 <= size <= 512:
            raise ValueError(f"size is {size}, wanted 32 to 512 px")
        if supersample not in (1, 2, 3):
            raise ValueError(f"supersample is {supersample}, wanted 1, 2 or 3")
        palm = palm_frame(hand)
        if np.cross(palm.distal, palm.radial) @ palm.dorsal < 0:
            raise ValueError("the hand is a left one: scenes are of right hands, mirror the image for left ones")
        self.settings = SceneSettings() if settings is None else settings
        self.size, self.supersample = size, supersample
        self.backgrounds = Backgrounds() if backgrounds is None else backgrounds
        self.hand = hand
        self.prior = PosePrior(hand, self.settings.pose)
        self.real_poses = RealPoses(self.prior, hand) if self.settings.real_poses else None
        self._axes = palm_axes(hand)  # right-handed, with y to the fingertips
        self._template = hand.v_template.astype(np.float32)
        self._shape_basis = hand.shapedirs.reshape(-1, 10).astype(np.float32)
        self._pose_basis = np.ascontiguousarray(hand.posedirs.reshape(-1, 135), np.float32)
        self._weights = np.where(hand.weights > 1e-7, hand.weights, 0).astype(np.float32)
        self._regressor = hand.J_regressor.astype(np.float32)
        self._ends = bone_ends(hand)
        self._arm = parts.ArmTopology(hand, surface_anatomy(hand), self._axes)
        self._directions = parts.sphere_directions(_DIRECTIONS)
        self._noise = kernels.noise_table()
        samples = size * supersample
        self._z = np.zeros((samples, samples), np.float32)
        self._face_id = np.zeros((samples, samples), np.int32)
        self._weight_0 = np.zeros((samples, samples), np.float32)
        self._weight_1 = np.zeros((samples, samples), np.float32)
        self._shadow = np.zeros((_SHADOW_RESOLUTION, _SHADOW_RESOLUTION), np.float32)

    # ---------------------------------------------------------------------------------------------------- public

    def render(self, rng: np.random.Generator, shot: Shot | None = None) -> SyntheticSample:
        """A finished photograph: foreground, background, camera effects. The same generator state, the same bytes.

        With `shot` hand and camera are those; everything else is drawn from `rng` all the same.
        """
        sample = self.render_foreground(rng, shot)
        background = self.backgrounds.sample(rng, self.size)
        image = place_on_background(rng, sample.image, sample.alpha, background, self.settings.shadow)
        if rng.random() < self.settings.fda_prob:
            image = mix_amplitude(rng, image, self.backgrounds.sample(rng, self.size))
        return replace(sample, image=camera_effects(rng, image, self.settings.effects))

    def render_foreground(self, rng: np.random.Generator, shot: Shot | None = None) -> SyntheticSample:
        """The same without background and camera effects: `image` is premultiplied by `alpha` (black outside).

        `camera_effects.composite` puts it on any background.
        """
        for _ in range(_ATTEMPTS - 1):
            if (sample := self._draw(rng, shot, self.settings.min_unoccluded, self.settings.min_visible)) is not None:
                return sample
        sample = self._draw(rng, shot, 0.0, 0.0)
        assert sample is not None
        return sample

    # ----------------------------------------------------------------------------------------------------- steps

    def _draw(
        self, rng: np.random.Generator, shot: Shot | None, min_unoccluded: float, min_visible: float
    ) -> SyntheticSample | None:
        """One scene, or None when too small a share of its joints is clear of other things, or visible."""
        settings = self.settings
        if shot is not None:
            hand, view = self._posed(shot.rotations, shot.betas, "given", ""), _view_of(shot)
        elif self.real_poses is not None and rng.random() < settings.real_poses:
            sampled, rotation = self.real_poses.sample(rng)
            hand = self._posed(sampled.rotations, self._sample_betas(rng), sampled.name, sampled.holds)
            view = replace(sample_view(rng, settings), name="real", rotation=rotation)
        else:
            hand, view = self._pose_hand(rng), sample_view(rng, settings)
        skin = parts.sample_skin(rng, settings.nail_polish)
        worn = parts.sample_worn(rng, self._arm.wrist, settings.hair, settings.tattoo, settings.glove)
        arm = self._arm.build(rng, hand.vertices, skin)
        extras: list[parts.Part] = []
        facts: dict[str, float | str] = {"pose": hand.pose_name, "view": view.name, "ita_degrees": skin.ita_degrees}
        if rng.random() < settings.sleeve:
            extras.append(arm.sleeve(rng))
            facts["sleeve"] = 1.0
        elif rng.random() < settings.bracelet:
            extras.append(arm.bracelet(rng))
            facts["bracelet"] = 1.0
        wears_ring = rng.random() < settings.ring
        if worn.glove:
            facts["glove"] = 1.0
        elif wears_ring:
            extras += [self._arm.ring(rng, hand.vertices) for _ in range(1 + (rng.random() < 0.25))]
            facts["ring"] = 1.0
        held = hand.holds if hand.holds and rng.random() < settings.object else ""
        if held:
            held_object = objects.held_object(rng, held, hand.segments, self.prior.radii, self._axes)
            if held_object is not None:
                extras.append(held_object)
                facts["object"] = held
        elif rng.random() < settings.stray_object:
            extras.append(objects.stray_object(rng, hand.segments, self._axes))
            facts["object"] = "stray"

        # Into the camera: turn about the rest wrist, then move.
        orientation = view.rotation @ self._axes
        center = hand.vertices.mean(axis=0).astype(np.float64)
        place = view.distance * np.array([np.tan(view.off_axis[0]), np.tan(view.off_axis[1]), 1.0])
        shift = place - orientation @ (center - hand.rest_wrist)  # where the wrist lands
        translation = shift - hand.rest_wrist
        vertices = _rotate_and_move(hand.vertices, hand.rest_wrist, orientation, shift)
        intrinsics = _crop_intrinsics(rng, vertices, self.size, settings) if shot is None else shot.intrinsics
        rotations = hand.rotations.copy()
        rotations[0] = orientation

        lights = parts.sample_lights(rng, self._directions, settings.lights)
        scene = _assemble([arm.part, *extras])
        scene.vertices = _rotate_and_move(scene.vertices, hand.rest_wrist, orientation, shift)
        if scene.vertices[:, 2].min() < _NEAREST and min_unoccluded > 0:
            return None  # the forearm would pass the camera, and its open end be seen
        if rng.random() < settings.second_hand:
            meeting = None
            if settings.steeple and "object" not in facts and rng.random() < settings.steeple:
                meeting = self._with_mirror_image(rng, scene, view.rotation)
            scene = meeting or self._with_second_hand(rng, scene, view.rotation, skin)
            facts["second_hand"] = 1.0
        appearance = self._light_and_rasterize(rng, scene, lights, skin, worn, intrinsics)
        joints = np.concatenate([self._regressor @ vertices, vertices[list(FINGERTIP_VERTICES)]])[
            list(JOINTS_FROM_MANO)
        ]
        projected = joints @ intrinsics.T
        keypoints = (projected[:, :2] / projected[:, 2:]).astype(np.float32)
        visible, clear = self._visible(keypoints, joints, scene.materials)
        if clear.mean() < min_unoccluded or visible.mean() < min_visible:
            return None
        image, alpha, mask = self._shade(scene, lights, appearance)
        if rng.random() < settings.occluder:
            cover = self._occlude(rng, image, alpha, mask, keypoints)
            visible &= ~_covered(cover, keypoints)
            if visible.mean() < min_visible:
                return None
            facts["occluder"] = 1.0
        facts["hidden_share"] = float(1 - visible.mean())
        return SyntheticSample(
            image=image,
            alpha=alpha,
            mask=mask,
            keypoints=keypoints,
            visible=visible,
            joints=joints.astype(np.float32),
            vertices=vertices,
            pose=rotations.astype(np.float32),
            betas=hand.betas.astype(np.float32),
            translation=translation.astype(np.float32),
            intrinsics=intrinsics.astype(np.float32),
            facts=facts,
        )

    def _pose_hand(self, rng: np.random.Generator) -> _Hand:
        """Random shape and pose."""
        betas = self._sample_betas(rng)
        sampled = self.prior.sample(rng)
        return self._posed(sampled.rotations, betas, sampled.name, sampled.holds)

    def _sample_betas(self, rng: np.random.Generator) -> Floats:
        return np.clip(rng.normal(0, self.settings.beta_scale, 10), -3, 3)

    def _posed(self, finger_rotations: Floats, betas: Floats, name: str, holds: str) -> _Hand:
        """Skinned with the wrist at its rest place and the palm unturned."""
        shaped = self._template + (self._shape_basis @ betas.astype(np.float32)).reshape(-1, 3)
        rest = self._regressor @ shaped
        rotations = finger_rotations.astype(np.float32)
        features = (rotations[1:] - np.eye(3, dtype=np.float32)).reshape(135)
        bent = shaped + (self._pose_basis @ features).reshape(-1, 3)
        orientations, places = forward_kinematics(rotations, rest)
        transforms = np.empty((16, 3, 4), np.float32)
        transforms[:, :, :3] = orientations
        transforms[:, :, 3] = places - (orientations @ rest[:, :, None])[:, :, 0]
        vertices = np.empty_like(shaped)
        kernels.skin_vertices(bent, self._weights, transforms, vertices)
        ends = self._ends + (rest - self.hand.J)
        segments = bone_segments(orientations.astype(float), places.astype(float), rest.astype(float), ends)
        return _Hand(finger_rotations, betas, vertices, segments, rest[0].astype(float), name, holds)

    def _with_second_hand(
        self, rng: np.random.Generator, scene: parts.Scene, rotation: Floats, skin: parts.Skin
    ) -> parts.Scene:
        """The scene (in the camera's frame) with another hand that touches or nearly touches it, not passing through.

        It is the left hand of the same person, or anyone's either hand. `rotation`: cam from (lateral, distal, dorsal)
        of the first hand.
        """
        other = self._pose_hand(rng)
        same = rng.random() < 0.7
        arm = self._arm.build(rng, other.vertices, skin if same else parts.sample_skin(rng, 0))
        vertices, faces = arm.part.vertices - other.rest_wrist, arm.part.faces
        points = vertices @ self._axes.T  # (lateral, distal, dorsal)
        if rng.random() < (0.9 if same else 0.5):
            points[:, 0] *= -1
            faces = faces[:, ::-1]
        if rng.random() < 0.45:  # as hands meet: about the same direction, or facing each other
            other_rotation, _ = np.linalg.qr(np.eye(3) + rng.normal(0, 0.35, (3, 3)))
            other_rotation = other_rotation * np.sign(np.diag(other_rotation))  # near the identity
            facing = np.diag([-1.0, 1.0, -1.0]) if rng.random() < 0.5 else np.eye(3)
            other_rotation = rotation @ facing @ other_rotation * np.sign(np.linalg.det(other_rotation))
        else:
            other_rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
            other_rotation = other_rotation * np.sign(np.linalg.det(other_rotation))
        placed = points @ other_rotation.T
        first = scene.vertices[: len(self._template)].astype(float)
        center, hand_points = first.mean(axis=0), placed[: len(self._template)]
        placed = placed + center - hand_points.mean(axis=0)
        angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.16)
        placed[:, :2] += away * np.array([np.cos(angle), np.sin(angle)])
        behind = rng.random() < 0.7
        placed[:, 2] += _depth_to_touch(scene.vertices[::3].astype(float), placed[::3], behind)
        placed[:, 2] += (1.0 if behind else -1.0) * abs(rng.normal(0, 0.01))
        return _with_other_hand(scene, placed, faces, arm.part.attributes)

    def _with_mirror_image(self, rng: np.random.Generator, scene: parts.Scene, rotation: Floats) -> parts.Scene | None:
        """The scene with the same person's other hand in the same pose, laid against the first: steeples, palms, fists.

        The mirror's plane touches the hand, so that both meet without passing through each other: palms where it is
        parallel to them, finger tips where it leans towards those. None where the forearm is in the way, or the other
        hand too close to the camera. `rotation` as in `_with_second_hand`.
        """
        _, distal, dorsal = rotation.T
        lean = rng.uniform(0, 1)  # radians
        normal = np.sin(lean) * distal - np.cos(lean) * dorsal
        arm = scene.vertices[: scene.arm_vertices].astype(float)
        height = arm @ normal
        highest = height[: len(self._template)].max()
        mirrored = arm + 2 * (highest - height)[:, None] * normal
        if height.max() > highest or mirrored[:, 2].min() < _NEAREST:
            return None
        faces = scene.faces[: scene.arm_faces, ::-1]
        return _with_other_hand(scene, mirrored, faces, scene.attributes[: scene.arm_vertices])

    def _light_and_rasterize(
        self,
        rng: np.random.Generator,
        scene: parts.Scene,
        lights: parts.Lights,
        skin: parts.Skin,
        worn: parts.Worn,
        intrinsics: Floats,
    ) -> Appearance:
        """Fill the scene's light attributes, tessellate it in place and fill the z-buffer."""
        vertices, faces = scene.vertices, scene.faces
        normals = np.empty_like(vertices)
        kernels.vertex_normals(vertices, faces, normals)
        irradiance, openness = np.empty_like(vertices), np.empty(len(vertices), np.float32)
        kernels.accumulate_environment(
            vertices, normals, faces, self._directions, lights.radiance, _ENVIRONMENT_RESOLUTION, irradiance, openness
        )
        self._shadow_frame = kernels.shadow_map(vertices, faces, lights.direction, self._shadow)
        hand = slice(0, len(self._template))
        facing = normals[hand, 2] < 0
        if not facing.any():
            facing[:] = True
        arriving = irradiance[hand][facing].mean(axis=0)
        arriving = arriving + np.maximum(normals[hand][facing] @ lights.direction, 0).mean() * lights.key
        luminance = float(arriving @ np.array([0.3, 0.6, 0.1]))
        # The camera's automatic white balance takes most of the light's colour away.
        gains = (luminance / np.maximum(arriving, 1e-3)) ** self.settings.white_balance
        irradiance *= gains.astype(np.float32)
        exposure = float(np.exp(rng.normal(np.log(0.95), 0.36)) / max(luminance, 0.05))
        # Light that has already met skin once: fills the gaps between the fingers with a warm glow.
        bounce = irradiance[hand].mean(axis=0) * scene.attributes[hand, Channel.ALBEDO :][:, :3].mean(axis=0) * 0.9
        irradiance += (1 - openness)[:, None] * bounce
        scene.attributes[:, Channel.IRRADIANCE : Channel.IRRADIANCE + 3] = irradiance
        scene.attributes[:, Channel.OPENNESS] = openness**0.9
        self._arm.tessellate(scene, normals)
        inverse_depth = (1 / scene.vertices[:, 2]).astype(np.float32)
        focal, cx, cy = intrinsics[0, 0], intrinsics[0, 2], intrinsics[1, 2]
        # A pixel with centre u covers samples (u + 0.5) * supersample - supersample / 2 ... + supersample / 2.
        x = ((scene.vertices[:, 0] * inverse_depth * focal + cx + 0.5) * self.supersample).astype(np.float32)
        y = ((scene.vertices[:, 1] * inverse_depth * focal + cy + 0.5) * self.supersample).astype(np.float32)
        scene.inverse_depth = inverse_depth
        self._z.fill(0)
        kernels.rasterize(x, y, inverse_depth, scene.faces, self._z, self._face_id, self._weight_0, self._weight_1)
        return parts.sample_appearance(rng, skin, worn, lights.key * gains, exposure, self.settings.skin)

    def _shade(
        self, scene: parts.Scene, lights: parts.Lights, appearance: Appearance
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        size = self.size
        normals = np.empty_like(scene.vertices)
        kernels.vertex_normals(scene.vertices, scene.faces, normals)
        gradients = np.empty((len(scene.faces), 6), np.float32)
        kernels.face_gradients(scene.vertices, scene.faces, gradients)
        color, alpha = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.float32)
        hand_share, image = np.zeros((size, size), np.float32), np.empty((size, size, 3), np.uint8)
        right, up, low_a, low_b, scale = self._shadow_frame
        kernels.shade(
            scene.inverse_depth, self._z, self._face_id, self._weight_0, self._weight_1, scene.faces, scene.materials,
            scene.vertices, normals, scene.attributes, gradients, lights.direction, self._shadow, right, up, low_a,
            low_b, scale, self._arm.nails, self._arm.creases, self._arm.tendons, self._noise, appearance,
            self.supersample, color, alpha, hand_share,
        )  # fmt: skip
        kernels.encode_premultiplied(color, alpha, image)
        return image, (alpha * 255 + 0.5).astype(np.uint8), (hand_share * 255 + 0.5).astype(np.uint8)

    def _visible(
        self, keypoints: Float32Array, joints: Float32Array, materials: NDArray[np.int32]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(21,) visible joints, and (21,) those inside the image with at most the hand itself in front of them."""
        inside = ((keypoints >= -0.5) & (keypoints < self.size - 0.5)).all(axis=1)
        samples = np.clip((keypoints + 0.5) * self.supersample, 0, len(self._z) - 1).astype(int)
        inverse = self._z[samples[:, 1], samples[:, 0]]
        # Where nothing was drawn, face_id is left from an earlier scene.
        material = materials[np.where(inverse > 0, self._face_id[samples[:, 1], samples[:, 0]], 0)]
        in_front = joints[:, 2] - 1 / np.maximum(inverse, 1e-6)  # metres that the surface lies in front of the joint
        allowed = np.where(material <= Material.FOREARM, SELF_OCCLUSION, 0)
        hidden = (inverse > 0) & (in_front > allowed)
        return inside & ~hidden, inside & ~(hidden & (material != Material.HAND))

    def _occlude(
        self,
        rng: np.random.Generator,
        image: NDArray[np.uint8],
        alpha: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        keypoints: Float32Array,
    ) -> NDArray[np.uint8]:
        """Something in front: a bar, a blob, or a finger-like limb in a skin colour. In place; returns its coverage."""
        size = self.size
        cover = np.zeros((size, size), np.uint8)
        center = keypoints[rng.integers(21)] + rng.normal(0, 0.05 * size, 2)
        center = np.clip(center, 0, size - 1)
        at, kind = (int(center[0]), int(center[1])), rng.random()
        reach = center + rng.normal(0, 1, 2) * size
        if kind < 0.35:
            axes = (int(size * rng.uniform(0.03, 0.12)), int(size * rng.uniform(0.03, 0.17)))
            cv2.ellipse(cover, at, axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        elif kind < 0.75:
            thickness = int(size * rng.uniform(0.02, 0.11))
            cv2.line(cover, at, (int(reach[0]), int(reach[1])), 255, max(thickness, 1), cv2.LINE_AA)
        else:
            polygon = (center + rng.normal(0, 0.08 * size, (6, 2))).astype(np.int32)
            cv2.fillConvexPoly(cover, cv2.convexHull(polygon), 255, cv2.LINE_AA)
        if rng.random() < 0.25:
            texture = np.full((size, size, 3), skin_color(rng), np.float32)
        else:
            texture = self.backgrounds.sample(rng, size).astype(np.float32)
        light = cv2.resize(
            rng.uniform(0.5, 1.15, (3, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
        texture = np.clip(texture * light[..., None], 0, 255).astype(np.uint8)
        keep = 255 - cover
        image[:] = cv2.add(
            cv2.multiply(image, cv2.cvtColor(keep, cv2.COLOR_GRAY2BGR), scale=1 / 255),
            cv2.multiply(texture, cv2.cvtColor(cover, cv2.COLOR_GRAY2BGR), scale=1 / 255),
        )
        alpha[:] = cv2.add(cv2.multiply(alpha, keep, scale=1 / 255), cover)
        mask[:] = cv2.multiply(mask, keep, scale=1 / 255)
        np.minimum(image, alpha[..., None], out=image)
        return cover


def _assemble(everything: list[parts.Part]) -> parts.Scene:
    """All parts in one vertex list; the first one is the arm."""
    starts = np.cumsum([0, *(len(part.vertices) for part in everything)])
    vertices = np.concatenate([part.vertices for part in everything])
    faces = np.concatenate([part.faces + start for part, start in zip(everything, starts[:-1], strict=True)])
    attributes = np.concatenate([part.attributes for part in everything])
    materials = np.concatenate([part.materials for part in everything])
    arm = everything[0]
    return parts.Scene(vertices, faces.astype(np.int32), attributes, materials, len(arm.vertices), len(arm.faces))


def _with_other_hand(
    scene: parts.Scene, vertices: Floats, faces: NDArray[np.int32], attributes: Float32Array
) -> parts.Scene:
    return parts.Scene(
        np.concatenate([scene.vertices, vertices.astype(np.float32)]),
        np.concatenate([scene.faces, faces + np.int32(len(scene.vertices))]),
        np.concatenate([scene.attributes, attributes]),
        np.concatenate([scene.materials, np.full(len(faces), Material.OTHER_HAND, np.int32)]),
        scene.arm_vertices,
        scene.arm_faces,
    )


def _depth_to_touch(first: Floats, second: Floats, behind: bool) -> float:
    """How far to move points `second` (n, 3) along z so that they touch `first` (m, 3) from behind or from in front:

    points whose x and y are within 9 mm of each other end up at least 4 mm apart in z.
    """
    apart = np.abs(first[:, None, :2] - second[None, :, :2]).max(axis=2) < 0.009
    if not apart.any():
        return 0.0
    gaps = (first[:, None, 2] - second[None, :, 2])[apart]
    return float(gaps.max()) + 0.004 if behind else float(gaps.min()) - 0.004


def _rotate_and_move(points: Floats | Float32Array, pivot: Floats, rotation: Floats, target: Floats) -> Float32Array:
    """Turn about `pivot`, which lands on `target`."""
    return ((points - pivot) @ rotation.T + target).astype(np.float32)


def _covered(cover: NDArray[np.uint8], keypoints: Float32Array) -> NDArray[np.bool_]:
    at = np.clip(np.round(keypoints), 0, len(cover) - 1).astype(int)
    return cover[at[:, 1], at[:, 0]] > 127


# ------------------------------------------------------------------------------------------------------------- views


@dataclass(frozen=True, eq=False)
class _View:
    name: str
    rotation: Floats  # (3, 3): cam from (lateral, distal, dorsal)
    distance: float  # metres along the optical axis
    off_axis: Floats  # (2,) radians


def sample_view(rng: np.random.Generator, settings: SceneSettings) -> _View:
    """Where the camera is: direction from the hand to the camera in (lateral, distal, dorsal) axes, and which way the
    fingers point in the image.
    """
    names = ("uniform", "tripod", "selfie", "egocentric", "table", "room")
    shares = np.array([getattr(settings, f"{name}_views") for name in names])
    name = names[rng.choice(len(names), p=shares / shares.sum())]
    anywhere = rng.uniform(-np.pi, np.pi)
    if name == "uniform":
        toward, angle, near, far = rng.normal(size=3), anywhere, 0.25, 1.5
    elif name == "tripod":
        # Around the forearm's axis anywhere; seldom along it. The arm comes from a side, above or below it.
        around = rng.uniform(-np.pi, np.pi)
        toward = np.array([np.cos(around), rng.normal(0, 0.45), np.sin(around)])
        angle = (1.0 if rng.random() < 0.5 else -1.0) * np.pi / 2 + rng.normal(0, 0.8)
        near, far = 0.4, 1.0
    elif name == "selfie":
        side = -1.0 if rng.random() < 0.5 else 1.0  # palm as often as back
        toward = np.array([rng.normal(0, 0.4), rng.normal(0, 0.35), side])
        angle, near, far = rng.normal(0, 0.45), 0.3, 0.7
    elif name == "egocentric":
        toward = np.array([rng.normal(0.1, 0.45), rng.normal(-0.8, 0.4), rng.normal(0.75, 0.45)])
        angle, near, far = rng.normal(0.4, 0.5), 0.25, 0.6
    elif name == "table":
        side = 1.0 if rng.random() < 0.6 else -1.0
        toward = np.array([rng.normal(0, 0.35), rng.normal(0, 0.35), side])
        angle, near, far = anywhere, 0.35, 1.0
    else:
        toward = np.array([rng.normal(0, 0.8), rng.normal(0, 0.3), rng.normal(0, 0.8)])
        angle, near, far = rng.normal(0, 0.6), 0.8, 3.0
    rotation = view_rotation(toward, angle)
    distance = float(np.exp(rng.uniform(np.log(near), np.log(far))))
    off_axis = np.clip(rng.normal(0, settings.off_axis, 2), -0.45, 0.45)
    return _View(name, rotation, distance, off_axis)


def _view_of(shot: Shot) -> _View:
    x, y, z = shot.place
    return _View("given", shot.rotation, float(z), np.arctan(np.array([x, y]) / z))


def view_rotation(toward_camera: Floats, angle: float) -> Floats:
    """(3, 3) cam from (lateral, distal, dorsal): a camera in direction `toward_camera` (3,) from the hand, in which

    the fingers point up, turned clockwise by `angle` radians.
    """
    backward = toward_camera / np.linalg.norm(toward_camera)
    distal = np.array([0.0, 1.0, 0.0])
    up = distal - (distal @ backward) * backward
    if np.linalg.norm(up) < 1e-3:  # seen along the fingers: any up will do
        up = np.array([0.0, 0.0, 1.0]) - backward[2] * backward
    up /= np.linalg.norm(up)
    right = np.cross(up, backward)
    upright = np.stack([right, -up, -backward])  # rows: camera x, y, z
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ upright


def _crop_intrinsics(rng: np.random.Generator, vertices: Float32Array, size: int, settings: SceneSettings) -> Floats:
    """(3, 3): focal length and principal point of a square crop around the hand, jittered."""
    directions = vertices[:, :2] / vertices[:, 2:]
    low, high = directions.min(axis=0), directions.max(axis=0)
    focal = size * rng.uniform(*settings.crop_share) / float((high - low).max())
    center = (low + high) / 2
    offset = np.clip(rng.normal(0, settings.off_center, 2), -0.18, 0.18) * size
    cx, cy = (size - 1) / 2 - focal * center + offset
    return np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]])
