"""Numba kernels of the synthetic renderer: rasterise, light and shade one scene on one core, without OpenGL.

Conventions: float32 throughout (an int64 added to a float32 would promote to float64, hence the many `f4(...)`);
camera frame is OpenCV's (x right, y down, z forward); "samples" are sub-pixels, `supersample` per pixel and axis,
and sample i of a row covers [i, i + 1). Vertex attributes are one (V, ATTRIBUTE_COUNT) array, see `Channel`.

The order of a frame: `accumulate_environment` and `shadow_map` (light per vertex), `tessellate` (smoother outlines),
`rasterize` (z-buffer), `shade` (once per pixel where it can, per sample along edges), `encode_premultiplied`.
"""

# Numba infers the kernels' types from what they are called with:
# mypy: allow-untyped-defs

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handmesh.system.kernels import kernel

f4 = np.float32
_FAST: dict[str, Any] = {"fastmath": True, "boundscheck": False}

Float32Array = NDArray[np.float32]


class Channel(IntEnum):
    """Columns of the vertex attribute array (the first of each group)."""

    REST = 0  # 3: rest position in millimetres along (lateral, distal, dorsal); object and cloth coordinates otherwise
    IRRADIANCE = 3  # 3: environment light that arrives, shadows included
    OPENNESS = 6  # share of the sky that is seen (ambient occlusion)
    FINGER = 7  # finger coordinate: 0 knuckle, 1 and 2 the joints, 3 the tip; 0 on the palm
    DORSAL = 8  # +1 back of the hand, -1 palm side
    HAND = 9  # 1 on the hand, 0 on the forearm
    ALBEDO = 10  # 3: linear RGB
    REDNESS = 13  # where blood shows: knuckles, fingertips, palm


ATTRIBUTE_COUNT = 14


class Material(IntEnum):
    """What a face belongs to."""

    HAND = 0
    FOREARM = 1
    CLOTH = 2
    OBJECT = 3
    OTHER_HAND = 4  # a second hand and its forearm: skin, but nothing of what the labels say


class Appearance(NamedTuple):
    """Everything about one scene's materials and key light that the pixel shader needs. Scalars are float32."""

    seed: Any  # offsets the noise table
    bump: Any  # fine skin relief
    knuckle_wrinkles: Any  # dorsal wrinkles over the finger joints
    creases: Any  # palm lines and finger creases
    roughness: Any
    specular: Any  # reflectance at normal incidence
    fresnel: Any
    mottle: Any  # blotches of blood and pigment
    veins: Any
    tendons: Any  # ridges on the back of the hand
    redness: Any
    wrap_red: Any  # how far light wraps around the terminator (cheap subsurface scattering)
    wrap_green: Any
    wrap_blue: Any
    key_red: Any
    key_green: Any
    key_blue: Any
    shadow_softness: Any  # texels
    nail_red: Any
    nail_green: Any
    nail_blue: Any
    nail_polish: Any  # 1: nails are painted
    nail_gloss: Any
    cloth_scale: Any
    cloth_pattern: Any  # 0 plain, 1 stripes, 2 checks
    object_scale: Any
    object_specular: Any
    object_pattern: Any  # above 0.5: two colours
    exposure: Any
    hair: Any  # on the back of hand and forearm; 0 none
    tattoo: Any  # ink density; 0 none
    tattoo_scale: Any  # 1/mm
    glove: Any  # 0 none, 1 knitted or leather, 2 thin and glossy
    glove_cuff: Any  # rest millimetres along the distal axis: where the glove begins
    glove_end: Any  # finger coordinate where it ends: 4 covers the tips, 1.5 is fingerless
    glove_red: Any
    glove_green: Any
    glove_blue: Any


# Its former name: numba reads what it cached under that before it finds it to be of an older source.
Look = Appearance


def noise_table() -> Float32Array:
    """(32, 32, 32) values in [-1, 1]; the lattice of `_noise`. Fixed, so that a seed means the same noise anywhere."""
    return np.random.default_rng(7).uniform(-1.0, 1.0, (32, 32, 32)).astype(f4)


# ------------------------------------------------------------------------------------------------------------ noise


@kernel(inline="always", **_FAST)
def _cell(x, y, z, seed):
    x += f4(seed % 31) * f4(7.31) + f4(1000)
    y += f4(seed % 37) * f4(5.77) + f4(1000)
    z += f4(seed % 41) * f4(3.19) + f4(1000)
    i, j, k = int(x), int(y), int(z)
    return x - f4(i), y - f4(j), z - f4(k), i & 31, j & 31, k & 31


@kernel(**_FAST)
def _noise(table, x, y, z, seed):
    """Smooth value noise in about [-1, 1]; one lattice cell per unit."""
    x, y, z, i, j, k = _cell(x, y, z, seed)
    i1, j1, k1 = (i + 1) & 31, (j + 1) & 31, (k + 1) & 31
    u = x * x * (f4(3) - f4(2) * x)
    v = y * y * (f4(3) - f4(2) * y)
    w = z * z * (f4(3) - f4(2) * z)
    p = table[i, j, k] + (table[i, j, k1] - table[i, j, k]) * w
    q = table[i, j1, k] + (table[i, j1, k1] - table[i, j1, k]) * w
    near = p + (q - p) * v
    p = table[i1, j, k] + (table[i1, j, k1] - table[i1, j, k]) * w
    q = table[i1, j1, k] + (table[i1, j1, k1] - table[i1, j1, k]) * w
    far = p + (q - p) * v
    return near + (far - near) * u


@kernel(**_FAST)
def _noise_gradient(table, x, y, z, seed):
    """Value noise and its exact gradient: (value, d/dx, d/dy, d/dz)."""
    x, y, z, i, j, k = _cell(x, y, z, seed)
    i1, j1, k1 = (i + 1) & 31, (j + 1) & 31, (k + 1) & 31
    u = x * x * (f4(3) - f4(2) * x)
    v = y * y * (f4(3) - f4(2) * y)
    w = z * z * (f4(3) - f4(2) * z)
    du = f4(6) * x * (f4(1) - x)
    dv = f4(6) * y * (f4(1) - y)
    dw = f4(6) * z * (f4(1) - z)
    a, b, c, d = table[i, j, k], table[i, j, k1], table[i, j1, k], table[i, j1, k1]
    e, f, g, h = table[i1, j, k], table[i1, j, k1], table[i1, j1, k], table[i1, j1, k1]
    ab, cd, ef, gh = a + (b - a) * w, c + (d - c) * w, e + (f - e) * w, g + (h - g) * w
    near, far = ab + (cd - ab) * v, ef + (gh - ef) * v
    along_y = ((cd - ab) * (f4(1) - u) + (gh - ef) * u) * dv
    z_near, z_far = (b - a) * (f4(1) - v) + (d - c) * v, (f - e) * (f4(1) - v) + (h - g) * v
    return near + (far - near) * u, (far - near) * du, along_y, (z_near + (z_far - z_near) * u) * dw


@kernel(**_FAST)
def _smoothstep(low, high, x):
    t = min(max((x - low) / (high - low), f4(0)), f4(1))
    return t * t * (f4(3) - f4(2) * t)


# ------------------------------------------------------------------------------------------------------------ light


@kernel(**_FAST)
def _largest_depth(a, b, c, faces, depth):
    """Rasterise faces seen along +c into `depth` (largest c per texel), both sides of a face alike."""
    rows, columns = depth.shape
    for f in range(faces.shape[0]):
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, x1, y1, x2, y2 = a[i0], b[i0], a[i1], b[i1], a[i2], b[i2]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < f4(1e-6):
            continue
        inverse = f4(1) / area
        ya = max(int(np.ceil(min(y0, y1, y2) - f4(0.5))), 0)
        yb = min(int(np.floor(max(y0, y1, y2) - f4(0.5))), rows - 1)
        xa = max(int(np.ceil(min(x0, x1, x2) - f4(0.5))), 0)
        xb = min(int(np.floor(max(x0, x1, x2) - f4(0.5))), columns - 1)
        if xa > xb or ya > yb:
            continue
        a0, b0 = (y1 - y2) * inverse, (x2 - x1) * inverse
        a1, b1 = (y2 - y0) * inverse, (x0 - x2) * inverse
        c0, c1, c2 = c[i0], c[i1], c[i2]
        step = a0 * (c0 - c2) + a1 * (c1 - c2)
        for y in range(ya, yb + 1):
            w0 = a0 * (f4(xa) + f4(0.5) - x2) + b0 * (f4(y) + f4(0.5) - y2)
            w1 = a1 * (f4(xa) + f4(0.5) - x2) + b1 * (f4(y) + f4(0.5) - y2)
            value = c2 + w0 * (c0 - c2) + w1 * (c1 - c2)
            for x in range(xa, xb + 1):
                if w0 >= f4(0) and w1 >= f4(0) and w0 + w1 <= f4(1) and value > depth[y, x]:
                    depth[y, x] = value
                w0 += a0
                w1 += a1
                value += step


@kernel(**_FAST)
def _plane_axes(direction):
    """Two unit vectors that span the plane across `direction`."""
    t0, t1 = (f4(0), f4(1)) if abs(direction[1]) < f4(0.9) else (f4(1), f4(0))
    right = np.empty(3, f4)
    right[0] = t1 * direction[2]
    right[1] = -t0 * direction[2]
    right[2] = t0 * direction[1] - t1 * direction[0]
    right *= f4(1) / np.sqrt(right[0] * right[0] + right[1] * right[1] + right[2] * right[2])
    up = np.empty(3, f4)
    up[0] = direction[1] * right[2] - direction[2] * right[1]
    up[1] = direction[2] * right[0] - direction[0] * right[2]
    up[2] = direction[0] * right[1] - direction[1] * right[0]
    return right, up


@kernel(**_FAST)
def shadow_map(vertices, faces, direction, depth):
    """Fill `depth` (S, S) with the distance along `direction` (towards the light) of what the light meets first.

    Returns (right, up, low_right, low_up, scale): texel = (vertex . right - low_right) * scale, and so for up.
    """
    count = vertices.shape[0]
    right, up = _plane_axes(direction)
    a, b, c = np.empty(count, f4), np.empty(count, f4), np.empty(count, f4)
    low_a, low_b, high_a, high_b = f4(1e9), f4(1e9), f4(-1e9), f4(-1e9)
    for i in range(count):
        x, y, z = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        a[i] = x * right[0] + y * right[1] + z * right[2]
        b[i] = x * up[0] + y * up[1] + z * up[2]
        c[i] = x * direction[0] + y * direction[1] + z * direction[2]
        low_a, low_b, high_a, high_b = min(low_a, a[i]), min(low_b, b[i]), max(high_a, a[i]), max(high_b, b[i])
    scale = f4(depth.shape[0] - 4) / max(high_a - low_a, high_b - low_b)
    low_a -= f4(2) / scale
    low_b -= f4(2) / scale
    for i in range(count):
        a[i] = (a[i] - low_a) * scale
        b[i] = (b[i] - low_b) * scale
    depth[:] = f4(-1e9)
    _largest_depth(a, b, c, faces, depth)
    return right, up, low_a, low_b, scale


@kernel(**_FAST)
def accumulate_environment(vertices, normals, faces, directions, radiance, resolution, irradiance, openness):
    """Light that reaches each vertex from D directions, each with its own small shadow map.

    directions (D, 3) evenly over the sphere, radiance (D, 3) -> irradiance (V, 3), openness (V,), both written.
    One pass gives soft-shadowed environment light and ambient occlusion together.
    """
    count, depth = vertices.shape[0], np.empty((resolution, resolution), f4)
    irradiance[:] = f4(0)
    openness[:] = f4(0)
    total = np.zeros(count, f4)
    for k in range(directions.shape[0]):
        d = directions[k]
        right, up, low_a, low_b, scale = shadow_map(vertices, faces, d, depth)
        for i in range(count):
            cosine = normals[i, 0] * d[0] + normals[i, 1] * d[1] + normals[i, 2] * d[2]
            if cosine <= f4(0):
                continue
            x = vertices[i, 0] + normals[i, 0] * f4(0.002)  # 2 mm off the surface: no self-shadow
            y = vertices[i, 1] + normals[i, 1] * f4(0.002)
            z = vertices[i, 2] + normals[i, 2] * f4(0.002)
            a = (x * right[0] + y * right[1] + z * right[2] - low_a) * scale - f4(0.5)
            b = (x * up[0] + y * up[1] + z * up[2] - low_b) * scale - f4(0.5)
            c = x * d[0] + y * d[1] + z * d[2] + f4(0.0025)
            ia, ib = int(np.floor(a)), int(np.floor(b))
            fa, fb, seen = a - f4(ia), b - f4(ib), f4(0)
            for q in range(2):
                for p in range(2):
                    column, row = min(max(ia + p, 0), resolution - 1), min(max(ib + q, 0), resolution - 1)
                    weight = (fa if p else f4(1) - fa) * (fb if q else f4(1) - fb)
                    blocked = (depth[row, column] - c) * f4(400)  # fades over 2.5 mm
                    seen += weight * (f4(1) - min(max(blocked, f4(0)), f4(1)))
            total[i] += cosine
            seen *= cosine
            openness[i] += seen
            for channel in range(3):
                irradiance[i, channel] += seen * radiance[k, channel]
    scale = f4(4.0 / directions.shape[0])
    for i in range(count):
        openness[i] = openness[i] / max(total[i], f4(1e-3))
        for channel in range(3):
            irradiance[i, channel] *= scale


# ------------------------------------------------------------------------------------------------------------- mesh


@kernel(**_FAST)
def skin_vertices(rest, weights, transforms, out):
    """Linear blend skinning: rest (V, 3), weights (V, J), transforms (J, 3, 4) -> out (V, 3)."""
    for i in range(rest.shape[0]):
        x, y, z = f4(0), f4(0), f4(0)
        for j in range(weights.shape[1]):
            w = weights[i, j]
            if w != f4(0):
                t = transforms[j]
                x += w * (t[0, 0] * rest[i, 0] + t[0, 1] * rest[i, 1] + t[0, 2] * rest[i, 2] + t[0, 3])
                y += w * (t[1, 0] * rest[i, 0] + t[1, 1] * rest[i, 1] + t[1, 2] * rest[i, 2] + t[1, 3])
                z += w * (t[2, 0] * rest[i, 0] + t[2, 1] * rest[i, 1] + t[2, 2] * rest[i, 2] + t[2, 3])
        out[i, 0], out[i, 1], out[i, 2] = x, y, z


@kernel(**_FAST)
def vertex_normals(vertices, faces, out):
    """Area-weighted unit normals (V, 3), written to `out`."""
    out[:] = f4(0)
    for f in range(faces.shape[0]):
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = (
            vertices[i1, 0] - vertices[i0, 0],
            vertices[i1, 1] - vertices[i0, 1],
            vertices[i1, 2] - vertices[i0, 2],
        )
        bx, by, bz = (
            vertices[i2, 0] - vertices[i0, 0],
            vertices[i2, 1] - vertices[i0, 1],
            vertices[i2, 2] - vertices[i0, 2],
        )
        nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        for corner in range(3):
            i = faces[f, corner]
            out[i, 0] += nx
            out[i, 1] += ny
            out[i, 2] += nz
    for i in range(out.shape[0]):
        scale = f4(1) / np.sqrt(out[i, 0] * out[i, 0] + out[i, 1] * out[i, 1] + out[i, 2] * out[i, 2] + f4(1e-20))
        out[i, 0] *= scale
        out[i, 1] *= scale
        out[i, 2] *= scale


@kernel(**_FAST)
def tessellate(vertices, normals, attributes, edges, alpha, vertices_out, attributes_out):
    """Phong tessellation (Boubekeur and Alexa 2008), one new vertex per edge; the old vertices stay where they are."""
    count = vertices.shape[0]
    for i in range(count):
        for c in range(3):
            vertices_out[i, c] = vertices[i, c]
        for c in range(attributes.shape[1]):
            attributes_out[i, c] = attributes[i, c]
    for e in range(edges.shape[0]):
        a, b = edges[e, 0], edges[e, 1]
        along_a, along_b = f4(0), f4(0)
        for c in range(3):
            half = (vertices[b, c] - vertices[a, c]) * f4(0.5)
            along_a += half * normals[a, c]
            along_b -= half * normals[b, c]
        for c in range(3):
            bulge = alpha * f4(0.5) * (along_a * normals[a, c] + along_b * normals[b, c])
            vertices_out[count + e, c] = f4(0.5) * (vertices[a, c] + vertices[b, c]) - bulge
        for c in range(attributes.shape[1]):
            attributes_out[count + e, c] = f4(0.5) * (attributes[a, c] + attributes[b, c])


@kernel(**_FAST)
def face_gradients(vertices, faces, out):
    """(F, 6): two vectors per face; a field with differences (da, db) along the two first edges has the gradient

    da * out[:3] + db * out[3:] on that face. Bump mapping needs it.
    """
    for f in range(faces.shape[0]):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = vertices[j, 0] - vertices[i, 0], vertices[j, 1] - vertices[i, 1], vertices[j, 2] - vertices[i, 2]
        bx, by, bz = vertices[k, 0] - vertices[i, 0], vertices[k, 1] - vertices[i, 1], vertices[k, 2] - vertices[i, 2]
        aa, bb, ab = ax * ax + ay * ay + az * az, bx * bx + by * by + bz * bz, ax * bx + ay * by + az * bz
        r = f4(1) / max(aa * bb - ab * ab, f4(1e-18))
        out[f, 0], out[f, 1], out[f, 2] = (bb * ax - ab * bx) * r, (bb * ay - ab * by) * r, (bb * az - ab * bz) * r
        out[f, 3], out[f, 4], out[f, 5] = (aa * bx - ab * ax) * r, (aa * by - ab * ay) * r, (aa * bz - ab * az) * r


@kernel(**_FAST)
def rasterize(x, y, inverse_depth, faces, depth, face_id, weight_0, weight_1):
    """Z-buffer of front faces at sample resolution.

    x, y (V,) in samples, inverse_depth (V,) 1/m. Writes, where a face is nearest: depth (1/z, 0 is empty), face_id and
    the first two screen-space barycentric weights.
    """
    rows, columns = depth.shape
    for f in range(faces.shape[0]):
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, x1, y1, x2, y2 = x[i0], y[i0], x[i1], y[i1], x[i2], y[i2]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area >= f4(0):  # counter-clockwise outside, y down: front faces have negative area
            continue
        z0, z1, z2 = inverse_depth[i0], inverse_depth[i1], inverse_depth[i2]
        if z0 <= f4(0) or z1 <= f4(0) or z2 <= f4(0):
            continue
        row_low = max(int(np.ceil(min(y0, y1, y2) - f4(0.5))), 0)
        row_high = min(int(np.floor(max(y0, y1, y2) - f4(0.5))), rows - 1)
        low = max(int(np.ceil(min(x0, x1, x2) - f4(0.5))), 0)
        high = min(int(np.floor(max(x0, x1, x2) - f4(0.5))), columns - 1)
        if low > high or row_low > row_high:
            continue
        inverse = f4(1) / area
        a0, b0 = (y1 - y2) * inverse, (x2 - x1) * inverse
        a1, b1 = (y2 - y0) * inverse, (x0 - x2) * inverse
        dx, dy = f4(low) + f4(0.5) - x2, f4(row_low) + f4(0.5) - y2
        w0_row, w1_row = a0 * dx + b0 * dy, a1 * dx + b1 * dy
        z_row = z2 + w0_row * (z0 - z2) + w1_row * (z1 - z2)
        z_step, z_row_step = a0 * (z0 - z2) + a1 * (z1 - z2), b0 * (z0 - z2) + b1 * (z1 - z2)
        for row in range(row_low, row_high + 1):
            w0, w1, z = w0_row, w1_row, z_row
            for column in range(low, high + 1):
                if w0 >= f4(0) and w1 >= f4(0) and w0 + w1 <= f4(1) and z > depth[row, column]:
                    depth[row, column] = z
                    face_id[row, column] = f
                    weight_0[row, column] = w0
                    weight_1[row, column] = w1
                w0 += a0
                w1 += a1
                z += z_step
            w0_row += b0
            w1_row += b1
            z_row += z_row_step


# ------------------------------------------------------------------------------------------------------------- skin


@kernel(**_FAST)
def _skin_relief(table, x, y, z, finger, dorsal, hand, low_noise, tendons, appearance):
    """Gradient of the micro relief (millimetres): along rest x, y, z and along the finger coordinate."""
    seed = int(appearance.seed)
    _, ax, ay, az = _noise_gradient(table, x * f4(0.42), y * f4(0.30), z * f4(0.42), seed)
    _, bx, by, bz = _noise_gradient(table, x * f4(0.95), y * f4(0.70), z * f4(0.95), seed + 1)
    gx = appearance.bump * (ax * f4(0.231) + bx * f4(0.2375))
    gy = appearance.bump * (ay * f4(0.165) + by * f4(0.175))
    gz = appearance.bump * (az * f4(0.231) + bz * f4(0.2375))
    along_finger = f4(0)
    if hand > f4(0.02):
        back = hand * _smoothstep(f4(-0.1), f4(0.7), dorsal)
        if back > f4(0):
            for joint in range(1, 3):  # transverse wrinkles over the two finger joints
                t = finger - f4(joint)
                if abs(t) < f4(0.37):
                    w, phase = np.exp(-t * t * f4(28)), t * f4(38) + f4(2) * low_noise
                    slope = f4(38) * np.cos(phase) - f4(56) * t * np.sin(phase)
                    along_finger += appearance.knuckle_wrinkles * back * f4(0.55) * w * slope
            if finger < f4(0.2) and appearance.tendons > f4(0):  # ridges of 0.5 mm from the knuckles towards the wrist
                for e in range(tendons.shape[0]):
                    bx, by = tendons[e, 2] - tendons[e, 0], tendons[e, 3] - tendons[e, 1]
                    dx, dy = x - tendons[e, 0], y - tendons[e, 1]
                    length = bx * bx + by * by
                    t = (dx * bx + dy * by) / length
                    if t < f4(-0.12) or t > f4(1):
                        continue
                    q = f4(1) / np.sqrt(length)
                    d = (dx * by - dy * bx) * q  # millimetres beside the tendon
                    if abs(d) < f4(6):
                        k = appearance.tendons * back * (f4(1) - _smoothstep(f4(0.45), f4(1), t))
                        k *= _smoothstep(f4(-0.12), f4(0), t) * f4(-0.19) * d * np.exp(-d * d * f4(0.16))
                        gx += k * by * q
                        gy -= k * bx * q
            if finger < f4(0.3) and appearance.veins > f4(0):  # veins run along the back of the hand
                n, vx, vy, vz = _noise_gradient(table, x * f4(0.11), y * f4(0.028), z * f4(0.11), seed + 3)
                if abs(n) < f4(0.25):
                    k = -appearance.veins * back * f4(3.2) * (f4(1) - _smoothstep(f4(0), f4(0.3), finger))
                    k = k if n > f4(0) else -k
                    gx += k * vx * f4(0.11)
                    gy += k * vy * f4(0.028)
                    gz += k * vz * f4(0.11)
        palm = hand * _smoothstep(f4(0.1), f4(0.7), -dorsal)
        if palm > f4(0):
            for joint in range(3):
                t = (finger - (f4(0.42) if joint == 0 else f4(joint))) * f4(26)
                if abs(t) < f4(2.5):
                    along_finger += appearance.creases * palm * f4(52) * t * np.exp(-t * t)
    return gx, gy, gz, along_finger


@kernel(**_FAST)
def _skin_density(table, x, y, z, finger, dorsal, hand, redness, creases, m1, m2, appearance):
    """Optical density to add per colour channel: blood, pigment, veins, palm lines, dark wrinkles."""
    seed = int(appearance.seed)
    blood = appearance.mottle * (m1 * f4(0.75) + m2 * f4(0.45)) + appearance.redness * redness
    pigment = appearance.mottle * (f4(0.35) * m2 - f4(0.3) * m1)
    freckle = _noise(table, x * f4(0.8), y * f4(0.8), z * f4(0.8), seed + 10) - f4(0.72)
    if freckle > f4(0):
        pigment += freckle * appearance.mottle * f4(2.2)
    red = blood * f4(0.10) + pigment * f4(0.55)
    green = blood * f4(0.62) + pigment * f4(0.85)
    blue = blood * f4(0.50) + pigment * f4(1.05)
    if appearance.hair > f4(0) and dorsal > f4(0) and finger < f4(1.9):
        # Hairs lie along the arm; none over the joints, few near the wrist's palm side.
        n = _noise(table, x * f4(1.9) + y * f4(0.4), y * f4(0.30), z * f4(1.9), seed + 12)
        k = appearance.hair * _smoothstep(f4(0.0), f4(0.7), n) * _smoothstep(f4(0), f4(0.5), dorsal)
        if hand > f4(0.5):
            between = abs(finger - np.floor(finger) - f4(0.5))
            k *= f4(0.75) * (f4(1) - f4(2) * between) if finger > f4(0.05) else f4(0.45)
        red += k * f4(0.8)
        green += k * f4(0.9)
        blue += k
    if appearance.tattoo > f4(0) and dorsal > f4(-0.2):  # hardly anyone has one on the palm
        c = appearance.tattoo_scale
        where = _noise(table, x * f4(0.02) + f4(3), y * f4(0.02), z * f4(0.02), seed + 14)
        n = _noise(table, x * c, y * c, z * c, seed + 15)
        if where > f4(0) and abs(n) < f4(0.16):
            k = (
                appearance.tattoo
                * _smoothstep(f4(-0.2), f4(0.1), dorsal)
                * _smoothstep(f4(0), f4(0.15), where)
                * (f4(1) - _smoothstep(f4(0.08), f4(0.16), abs(n)))
            )
            red += k * f4(1.3)
            green += k * f4(1.1)
            blue += k * f4(0.8)
    if hand <= f4(0.02):
        return red, green, blue
    back = hand * _smoothstep(f4(0.1), f4(0.8), dorsal)
    if back > f4(0):
        if finger < f4(0.25) and appearance.veins > f4(0):
            n = _noise(table, x * f4(0.07) + f4(9), y * f4(0.03), z * f4(0.07), seed + 5)
            k = (f4(1) - min(abs(n) * f4(9), f4(1))) * appearance.veins * back * (f4(1) - finger * f4(4)) * f4(0.35)
            red += k * f4(0.4)
            green += k * f4(0.10)
            blue += k * f4(0.06)
        for joint in range(1, 3):
            t = finger - f4(joint)
            if abs(t) < f4(0.3):
                stripes = f4(0.6) + f4(0.4) * np.sin(t * f4(38) + f4(2) * m1)
                k = np.exp(-t * t * f4(40)) * back * appearance.knuckle_wrinkles * f4(0.35) * stripes
                red += k * f4(0.4)
                green += k * f4(0.6)
                blue += k * f4(0.65)
    palm = hand * _smoothstep(f4(0.1), f4(0.7), -dorsal)
    if palm > f4(0):
        k = f4(0)
        for joint in range(3):  # creases of the finger joints, and where the finger meets the palm
            t = (finger - (f4(0.42) if joint == 0 else f4(joint))) * f4(24)
            if abs(t) < f4(2.5):
                k = max(k, np.exp(-t * t))
        if finger < f4(0.4):  # the palm's main lines: polylines in the rest plane, (x0, y0, x1, y1, strength) in mm
            for e in range(creases.shape[0]):
                bx, by = creases[e, 2] - creases[e, 0], creases[e, 3] - creases[e, 1]
                dx, dy = x - creases[e, 0], y - creases[e, 1]
                t = min(max((dx * bx + dy * by) / (bx * bx + by * by), f4(0)), f4(1))
                dx += f4(1.2) * m2 - t * bx
                dy += f4(1.2) * m1 - t * by
                squared = (dx * dx + dy * dy) * f4(0.8)
                if squared < f4(5):
                    k = max(k, creases[e, 4] * np.exp(-squared))
        k *= appearance.creases * palm * f4(0.9)
        red += k * f4(0.30)
        green += k * f4(0.55)
        blue += k * f4(0.55)
    return red, green, blue


@kernel(**_FAST)
def _nail(x, y, z, nails, appearance, red, green, blue):
    """Colour with the nail plate drawn in, and how much of a nail this point is (0..1).

    nails (5, 14): centre, distal, lateral and dorsal axes, half length and half width, in rest millimetres.
    """
    plate = f4(0)
    for k in range(nails.shape[0]):
        n = nails[k]
        dx, dy, dz = x - n[0], y - n[1], z - n[2]
        u = (dx * n[3] + dy * n[4] + dz * n[5]) / n[12]
        w = (dx * n[6] + dy * n[7] + dz * n[8]) / n[13]
        height = dx * n[9] + dy * n[10] + dz * n[11]
        if abs(u) < f4(1.6) and abs(w) < f4(1.4) and height > f4(-4):
            e = w * w * abs(w) + u * u * np.sqrt(abs(u)) * abs(u)  # a squarish ellipse
            plate = f4(1) - _smoothstep(f4(0.75), f4(1.15), e)
            rim = np.exp(-(e - f4(1.1)) * (e - f4(1.1)) * f4(14))
            red *= f4(1) - f4(0.18) * rim
            green *= f4(1) - f4(0.28) * rim
            blue *= f4(1) - f4(0.28) * rim
            if plate > f4(0):
                tr, tg, tb = appearance.nail_red, appearance.nail_green, appearance.nail_blue
                if appearance.nail_polish < f4(0.5):  # a pink plate over the skin, a white free edge, a pale lunula
                    tr = red * f4(0.35) + tr * f4(0.65)
                    tg = green * f4(0.35) + tg * f4(0.65)
                    tb = blue * f4(0.35) + tb * f4(0.65)
                    edge = _smoothstep(f4(0.80), f4(0.92), u) * f4(0.55)
                    tr += (red * f4(0.5) + f4(0.40) - tr) * edge
                    tg += (green * f4(0.5) + f4(0.36) - tg) * edge
                    tb += (blue * f4(0.5) + f4(0.31) - tb) * edge
                    lunula = _smoothstep(f4(0.55), f4(0.85), -u) * f4(0.22)
                    tr += (red * f4(0.4) + f4(0.45) - tr) * lunula
                    tg += (green * f4(0.4) + f4(0.40) - tg) * lunula
                    tb += (blue * f4(0.4) + f4(0.37) - tb) * lunula
                red += (tr - red) * plate
                green += (tg - green) * plate
                blue += (tb - blue) * plate
            break
    return red, green, blue, plate


# ----------------------------------------------------------------------------------------------------------- shading


@kernel(**_FAST)
def _key_light_share(px, py, pz, direction, depth, right, up, low_a, low_b, scale, softness):
    """Share of the key light that arrives: four bilinear comparisons with the shadow map."""
    a = (px * right[0] + py * right[1] + pz * right[2] - low_a) * scale - f4(0.5)
    b = (px * up[0] + py * up[1] + pz * up[2] - low_b) * scale - f4(0.5)
    c = px * direction[0] + py * direction[1] + pz * direction[2] + f4(0.0018)
    size, share = depth.shape[0], f4(0)
    for j in range(2):
        for i in range(2):
            aa, bb = a + (f4(i) - f4(0.5)) * softness * f4(1.6), b + (f4(j) - f4(0.5)) * softness * f4(1.6)
            ia, ib = int(np.floor(aa)), int(np.floor(bb))
            if ia < 0 or ib < 0 or ia >= size - 1 or ib >= size - 1:
                share += f4(1)
                continue
            fa, fb = aa - f4(ia), bb - f4(ib)
            t00 = f4(1) if depth[ib, ia] <= c else f4(0)
            t01 = f4(1) if depth[ib, ia + 1] <= c else f4(0)
            t10 = f4(1) if depth[ib + 1, ia] <= c else f4(0)
            t11 = f4(1) if depth[ib + 1, ia + 1] <= c else f4(0)
            share += (t00 * (f4(1) - fa) + t01 * fa) * (f4(1) - fb) + (t10 * (f4(1) - fa) + t11 * fa) * fb
    return share * f4(0.25)


@kernel(**_FAST)
def _shade_sample(
    row, column, inverse_depth, face_id, weight_0, weight_1, faces, materials, vertices, normals, attributes,
    gradients, light, depth, right, up, low_a, low_b, scale, nails, creases, tendons, table, appearance, out,
):  # fmt: skip
    """Linear RGB of one sample, written to `out` (3,)."""
    f = face_id[row, column]
    i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
    w0 = weight_0[row, column] * inverse_depth[i0]  # perspective-correct weights
    w1 = weight_1[row, column] * inverse_depth[i1]
    w2 = (f4(1) - weight_0[row, column] - weight_1[row, column]) * inverse_depth[i2]
    q = f4(1) / (w0 + w1 + w2)
    w0, w1, w2 = w0 * q, w1 * q, w2 * q
    nx = w0 * normals[i0, 0] + w1 * normals[i1, 0] + w2 * normals[i2, 0]
    ny = w0 * normals[i0, 1] + w1 * normals[i1, 1] + w2 * normals[i2, 1]
    nz = w0 * normals[i0, 2] + w1 * normals[i1, 2] + w2 * normals[i2, 2]
    px = w0 * vertices[i0, 0] + w1 * vertices[i1, 0] + w2 * vertices[i2, 0]
    py = w0 * vertices[i0, 1] + w1 * vertices[i1, 1] + w2 * vertices[i2, 1]
    pz = w0 * vertices[i0, 2] + w1 * vertices[i1, 2] + w2 * vertices[i2, 2]
    p0, p1, p2 = attributes[i0], attributes[i1], attributes[i2]
    x, y, z = w0 * p0[0] + w1 * p1[0] + w2 * p2[0], w0 * p0[1] + w1 * p1[1] + w2 * p2[1], w0 * p0[2] + w1 * p1[2] + w2 * p2[2]  # fmt: skip  # noqa: E501
    sky_r, sky_g, sky_b = w0 * p0[3] + w1 * p1[3] + w2 * p2[3], w0 * p0[4] + w1 * p1[4] + w2 * p2[4], w0 * p0[5] + w1 * p1[5] + w2 * p2[5]  # fmt: skip  # noqa: E501
    openness, finger = w0 * p0[6] + w1 * p1[6] + w2 * p2[6], w0 * p0[7] + w1 * p1[7] + w2 * p2[7]
    dorsal, hand = w0 * p0[8] + w1 * p1[8] + w2 * p2[8], w0 * p0[9] + w1 * p1[9] + w2 * p2[9]
    red, green, blue = w0 * p0[10] + w1 * p1[10] + w2 * p2[10], w0 * p0[11] + w1 * p1[11] + w2 * p2[11], w0 * p0[12] + w1 * p1[12] + w2 * p2[12]  # fmt: skip  # noqa: E501
    q = f4(1) / np.sqrt(nx * nx + ny * ny + nz * nz + f4(1e-12))
    nx, ny, nz = nx * q, ny * q, nz * q
    material, seed = materials[f], int(appearance.seed)
    specular, roughness = appearance.specular, appearance.roughness
    wrap_r, wrap_g, wrap_b = appearance.wrap_red, appearance.wrap_green, appearance.wrap_blue
    skin = material <= 1 or material == 4
    if material <= 1 and appearance.glove > f4(0) and y > appearance.glove_cuff and finger < appearance.glove_end:
        thin, knit = appearance.glove > f4(1.5), f4(0)
        if not thin:
            knit = f4(0.7) * np.sin(x * f4(2.2)) * np.sin(y * f4(1.6)) * np.sin(z * f4(2.2))
        n = _noise(table, x * f4(0.12), y * f4(0.12), z * f4(0.12), seed + 24)
        shade_of = f4(0.9) + f4(0.16) * n + f4(0.18) * knit
        if y - appearance.glove_cuff < f4(5) or appearance.glove_end - finger < f4(0.12):
            shade_of *= f4(0.72)  # the hem
        red, green, blue = (
            appearance.glove_red * shade_of,
            appearance.glove_green * shade_of,
            appearance.glove_blue * shade_of,
        )
        skin = False
        specular, roughness = (f4(0.04), f4(0.38)) if thin else (f4(0.008), f4(0.75))
        wrinkle = f4(0.22) if thin else f4(0.35)
        nx += _noise(table, x * f4(0.14), y * f4(0.07), z * f4(0.14), seed + 25) * wrinkle
        ny += _noise(table, x * f4(0.14) + f4(17), y * f4(0.07), z * f4(0.14), seed + 25) * wrinkle
        q = f4(1) / np.sqrt(nx * nx + ny * ny + nz * nz)
        nx, ny, nz = nx * q, ny * q, nz * q
    elif skin:
        redness = w0 * p0[13] + w1 * p1[13] + w2 * p2[13]
        m1 = _noise(table, x * f4(0.16), y * f4(0.16), z * f4(0.16), seed + 7)
        m2 = _noise(table, x * f4(0.5), y * f4(0.5), z * f4(0.5), seed + 8)
        dr, dg, db = _skin_density(table, x, y, z, finger, dorsal, hand, redness, creases, m1, m2, appearance)
        red, green, blue = red * np.exp(-dr), green * np.exp(-dg), blue * np.exp(-db)
        gx, gy, gz, gs = _skin_relief(table, x, y, z, finger, dorsal, hand, m1, tendons, appearance)
        da = (gx * (p1[0] - p0[0]) + gy * (p1[1] - p0[1]) + gz * (p1[2] - p0[2]) + gs * (p1[7] - p0[7])) * f4(0.001)
        db = (gx * (p2[0] - p0[0]) + gy * (p2[1] - p0[1]) + gz * (p2[2] - p0[2]) + gs * (p2[7] - p0[7])) * f4(0.001)
        gx = da * gradients[f, 0] + db * gradients[f, 3]
        gy = da * gradients[f, 1] + db * gradients[f, 4]
        gz = da * gradients[f, 2] + db * gradients[f, 5]
        slope = np.sqrt(gx * gx + gy * gy + gz * gz)
        q = f4(0.7) / slope if slope > f4(0.7) else f4(1)
        nx, ny, nz = nx - gx * q, ny - gy * q, nz - gz * q
        q = f4(1) / np.sqrt(nx * nx + ny * ny + nz * nz + f4(1e-12))
        nx, ny, nz = nx * q, ny * q, nz * q
        if hand > f4(0.5) and finger > f4(2.25) and dorsal > f4(-0.1):
            red, green, blue, plate = _nail(x, y, z, nails, appearance, red, green, blue)
            specular += plate * appearance.nail_gloss
            roughness += (f4(0.30) - roughness) * plate
    elif material == 2:
        c = appearance.cloth_scale
        weave = f4(0.82) + f4(0.10) * np.sin(x * c) * np.sin(y * c * f4(0.7))
        weave += f4(0.12) * _noise(table, x * f4(0.08), y * f4(0.05), z * f4(0.08), seed + 20)
        weave += f4(0.08) * _noise(table, x * f4(1.1), y * f4(1.1), z * f4(1.1), seed + 21)
        if appearance.cloth_pattern > f4(0.5) and np.sin(y * c * f4(0.2)) > f4(0.3):
            weave *= f4(0.45)
        if appearance.cloth_pattern > f4(1.5) and np.sin(x * c * f4(0.2)) > f4(0.3):
            weave *= f4(0.55)
        red, green, blue = red * weave, green * weave, blue * weave
        specular, roughness = f4(0.004), f4(0.8)
        nx += _noise(table, x * f4(0.06), y * f4(0.03), z * f4(0.06), seed + 22) * f4(0.45)
        ny += _noise(table, x * f4(0.06) + f4(31), y * f4(0.03), z * f4(0.06), seed + 22) * f4(0.45)
        q = f4(1) / np.sqrt(nx * nx + ny * ny + nz * nz)
        nx, ny, nz = nx * q, ny * q, nz * q
    else:
        c = appearance.object_scale
        n = _noise(table, x * c, y * c, z * c, seed + 30)
        if appearance.object_pattern > f4(0.5):
            if np.sin(x * c * f4(3)) + np.sin(y * c * f4(3)) + n > f4(0.3):
                red, green, blue = blue * f4(0.8) + f4(0.1), red * f4(0.5), green * f4(0.9)
        else:
            red, green, blue = red * (f4(1) + f4(0.25) * n), green * (f4(1) + f4(0.25) * n), blue * (f4(1) + f4(0.25) * n)  # fmt: skip  # noqa: E501
        specular, roughness = appearance.object_specular, f4(0.3)
        wrap_r, wrap_g, wrap_b = f4(0), f4(0), f4(0)

    facing, arrives = nx * light[0] + ny * light[1] + nz * light[2], f4(0)
    if facing + wrap_r > f4(0) and appearance.key_red > f4(0):
        arrives = _key_light_share(
            px + nx * f4(0.0015), py + ny * f4(0.0015), pz + nz * f4(0.0015),
            light, depth, right, up, low_a, low_b, scale, appearance.shadow_softness,
        )  # fmt: skip
    diffuse_r = max((facing + wrap_r) / (f4(1) + wrap_r), f4(0))
    diffuse_g = max((facing + wrap_g) / (f4(1) + wrap_g), f4(0))
    diffuse_b = max((facing + wrap_b) / (f4(1) + wrap_b), f4(0))
    # A shadow's edge on skin is reddish: red light travels farthest inside.
    arrives_r = np.sqrt(arrives) * f4(0.18) + arrives * f4(0.82) if skin else arrives
    light_r = sky_r + appearance.key_red * diffuse_r * arrives_r
    light_g = sky_g + appearance.key_green * diffuse_g * arrives
    light_b = sky_b + appearance.key_blue * diffuse_b * arrives
    # GGX highlight of the key light, and a Fresnel rim of the surroundings.
    q = -f4(1) / np.sqrt(px * px + py * py + pz * pz)
    vx, vy, vz = px * q, py * q, pz * q
    cos_view = max(nx * vx + ny * vy + nz * vz, f4(0.02))
    hx, hy, hz = light[0] + vx, light[1] + vy, light[2] + vz
    q = f4(1) / np.sqrt(hx * hx + hy * hy + hz * hz + f4(1e-9))
    cos_half = max((nx * hx + ny * hy + nz * hz) * q, f4(0))
    light_half = max((light[0] * hx + light[1] * hy + light[2] * hz) * q, f4(0))
    a2 = roughness * roughness
    a2 *= a2
    d = cos_half * cos_half * (a2 - f4(1)) + f4(1)
    k = (roughness + f4(1)) * (roughness + f4(1)) * f4(0.125)
    masking = f4(1) / ((cos_view * (f4(1) - k) + k) * (max(facing, f4(0.02)) * (f4(1) - k) + k) * f4(4))
    grazing = f4(1) - light_half
    grazing = grazing * grazing * grazing * grazing * grazing
    reflected = specular + (f4(1) - specular) * grazing * appearance.fresnel
    highlight = a2 / (d * d) * masking * reflected * max(facing, f4(0)) * arrives
    grazing = f4(1) - cos_view
    grazing = grazing * grazing * grazing * grazing * grazing
    rim = (
        (specular + (f4(1) - specular) * grazing * appearance.fresnel * f4(0.4))
        * (f4(1) - roughness * f4(0.6))
        * openness
    )
    out[0] = (red * light_r + appearance.key_red * highlight + rim * sky_r) * appearance.exposure
    out[1] = (green * light_g + appearance.key_green * highlight + rim * sky_g) * appearance.exposure
    out[2] = (blue * light_b + appearance.key_blue * highlight + rim * sky_b) * appearance.exposure


@kernel(**_FAST)
def shade(
    inverse_depth, z_buffer, face_id, weight_0, weight_1, faces, materials, vertices, normals, attributes, gradients,
    light, depth, right, up, low_a, low_b, scale, nails, creases, tendons, table, appearance, supersample, color, alpha,
    hand_share,
):  # fmt: skip
    """Shade every covered pixel: once where its samples agree, sample by sample at edges of depth or material.

    Writes color (S, S, 3) linear RGB multiplied by coverage, alpha (S, S) coverage, hand_share (S, S) coverage by
    the hand alone; all must come in as zeros.
    """
    rows, columns = alpha.shape
    out = np.empty(3, f4)
    share = f4(1) / f4(supersample * supersample)
    for y in range(rows):
        for x in range(columns):
            count, hands, mixed, first, first_face = 0, 0, False, -1, -1
            low, high, best_row, best_column = f4(1e9), f4(0), 0, 0
            for j in range(y * supersample, (y + 1) * supersample):
                for i in range(x * supersample, (x + 1) * supersample):
                    z = z_buffer[j, i]
                    if z > f4(0):
                        count += 1
                        material = materials[face_id[j, i]]
                        if material == 0:
                            hands += 1
                        if first >= 0 and (material != first or (material == 3 and face_id[j, i] != first_face)):
                            mixed = True  # objects have hard edges within one material
                        first, first_face = material, face_id[j, i]
                        low = min(low, z)
                        if z > high:
                            high, best_row, best_column = z, j, i
            if count == 0:
                continue
            alpha[y, x] = f4(count) * share
            hand_share[y, x] = f4(hands) * share
            row_low, row_high = y * supersample, (y + 1) * supersample
            low_column, high_column, weight = x * supersample, (x + 1) * supersample, share
            if not mixed and f4(1) / low - f4(1) / high < f4(0.006):  # one surface within 6 mm
                row_low, row_high, low_column, high_column = best_row, best_row + 1, best_column, best_column + 1
                weight = alpha[y, x]
            for j in range(row_low, row_high):
                for i in range(low_column, high_column):
                    if z_buffer[j, i] > f4(0):
                        _shade_sample(
                            j, i, inverse_depth, face_id, weight_0, weight_1, faces, materials, vertices, normals,
                            attributes, gradients, light, depth, right, up, low_a, low_b, scale, nails, creases,
                            tendons, table, appearance, out,
                        )  # fmt: skip
                        for c in range(3):
                            color[y, x, c] += out[c] * weight


@kernel(**_FAST)
def encode_premultiplied(color, alpha, out):
    """Linear, coverage-weighted colour (S, S, 3) -> display RGB times coverage, (S, S, 3) uint8.

    The tone curve (a soft shoulder, then a square root close to sRGB's gamma) acts on the uncovered colour, so that an
    edge pixel holds the surface's own colour times its coverage and no trace of a background.
    """
    rows, columns = alpha.shape
    for y in range(rows):
        for x in range(columns):
            a = alpha[y, x]
            if a <= f4(0):
                out[y, x, 0], out[y, x, 1], out[y, x, 2] = 0, 0, 0
                continue
            for c in range(3):
                v = max(color[y, x, c] / a, f4(0))
                v = v * (f4(1) + v * f4(0.10)) / (f4(1) + v * f4(0.35))
                out[y, x, c] = np.uint8(min(np.sqrt(v), f4(1)) * a * f4(255) + f4(0.5))
