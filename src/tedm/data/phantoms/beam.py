"""What the beam crosses on its way through a patient."""

import numpy as np

from tedm.data.phantoms.chest import Chest
from tedm.data.phantoms.findings import Findings
from tedm.data.phantoms.patient import middle_of
from tedm.data.phantoms.shapes import Field, capsule, chord, distance, edge, ellipse, smooth_min

# Linear attenuation in 1/cm near 70 keV, the effective energy of a chest radiograph (NIST XCOM, rounded).
SOFT, LUNG, BONE = 0.19, 0.05, 0.52


def attenuate(rng: np.random.Generator, chest: Chest, found: Findings) -> Field:
    """Attenuation summed along each ray, without unit."""
    p, plane, y = chest.p, chest.plane, chest.plane.y
    body = _body(chest)
    # Lung: deep in the middle, none at its borders; it also lies behind the heart, and in the recess behind
    # the diaphragm, where it is not segmented but shows.
    in_cage = chord(chest.cage, 1.8 + 3.2 * edge(chest.q - 5.0, 4.0))
    over = edge(chest.diaphragm, 0.5) * (0.72 + 0.28 * chord(chest.diaphragm, 4.5))
    behind = 0.16 * np.exp(np.minimum(chest.diaphragm, 0) / 2.2) * (chest.diaphragm < 0)
    hidden = 1 - 0.66 * chord(chest.mediastinum, 2.6)
    filled = np.clip(found.filled, 0, 1)
    air = 0.66 * p.depth * in_cage * np.maximum(over, behind) * hidden
    air = np.minimum(air * (1 - 0.85 * filled), 0.9 * body)
    seen = edge(chest.lung, 0.4)
    vessels = _vessels(rng, chest) * np.maximum(seen, 0.35 * edge(chest.cage, 0.4))
    lung_texture = (plane.texture(rng, 60) + plane.texture(rng, 34)) * 0.012 * in_cage * over
    soft = body - air + vessels + found.solid * edge(chest.cage, 0.3)
    soft = soft + 0.25 * plane.texture(rng, 8) + 0.12 * plane.texture(rng, 20)
    soft = np.maximum(soft - _airways(chest) - _stomach(rng, chest), 0) * (body > 0)
    bone = (_ribs(rng, chest) + _spine(chest) + _shoulder_girdle(chest)) * edge(body - 1.0, 2.0)
    aorta = 1.2 * chord(chest.aorta, 1.3) * edge(p.dome[1] - y, 2.0)
    # Bone takes the place of soft tissue.
    total: Field = SOFT * (soft + aorta) + LUNG * air + (BONE - SOFT) * bone + lung_texture + found.metal
    return total


def _body(chest: Chest) -> Field:
    """Thickness of the body, as if it held no air."""
    p, q, y = chest.p, chest.q, chest.plane.y
    side = middle_of(p.half_width) + p.wall
    trunk = side + 0.35 * np.cos(0.16 * (y - 4)) - q
    joint = (side + 2.2, p.shoulder)
    elbow = (joint[0] + 60 * float(np.sin(p.arm)), joint[1] + 60 * float(np.cos(p.arm)))
    top = middle_of(p.apex)
    below = p.depth * (1 + 0.12 * edge(y - middle_of(p.dome), 8.0)) * edge(y - top + 1.2, 11.0)
    parts = (
        below * chord(trunk, 0.45 * side),
        14.5 * chord(capsule(q, y, (1.0, top - 5.0), joint, 4.8), 4.4),
        12.0 * chord(capsule(q, y, joint, elbow, 4.3), 4.3),
        13.0 * chord(capsule(q, y, (0.0, top - 14), (0.0, top + 4), 5.8), 5.8),
    )
    # The fourth norm: the larger thickness counts, and folds such as the armpit are soft.
    body: Field = np.sqrt(np.sqrt(np.add.reduce([np.square(np.square(part)) for part in parts])))
    thick, bx, by, radius = p.breast
    if thick:
        # The upper border fades into the chest wall, the lower one is a fold.
        lobe = ellipse(q - bx, y - by, radius, radius * 0.85)
        body = body + thick * chord(lobe, radius * 0.8) * edge(y - by + 0.55 * radius, 1.4 * radius) * (
            body > 0
        )
    return body


def _vessels(rng: np.random.Generator, chest: Chest) -> Field:
    """Thickness of the pulmonary vessels: hila, and two trees that branch three times."""
    plane = chest.plane
    stems = 9
    angles = np.tile(np.linspace(-1.35, 1.3, stems), 2) + rng.normal(
        0, 0.12, 2 * stems
    )  # from the outward direction
    outward = np.repeat([-1.0, 1.0], stems)
    start = np.repeat(chest.hila, stems, axis=0) + rng.normal(0, 0.4, (2 * stems, 2))
    radius = np.where(angles > 0.1, 0.46, 0.34) * rng.uniform(
        0.75, 1.2, 2 * stems
    )  # gravity fills the lower ones
    length = 3.6 * rng.uniform(0.75, 1.3, 2 * stems)
    t = np.linspace(0, 1, 14)[:, None, None]
    total: Field = np.zeros_like(plane.x)
    for _ in range(4):
        bend = angles + rng.normal(0, 0.25, len(angles))
        one = np.stack([outward * np.cos(angles), np.sin(angles)], axis=1) * length[:, None]
        two = np.stack([outward * np.cos(bend), np.sin(bend)], axis=1) * length[:, None]
        points = start + t * one * (1 - t / 2) + t * t / 2 * two
        volume = np.broadcast_to(np.pi * radius**2 * length / len(t), points.shape[:2])
        total += plane.lines(points.reshape(-1, 2), volume.reshape(-1), float(radius.mean()))
        start = np.repeat(points[-1], 2, axis=0)
        angles = np.repeat(bend, 2) + np.tile([-0.38, 0.38], len(bend)) + rng.normal(0, 0.15, 2 * len(bend))
        outward = np.repeat(outward, 2)
        radius = np.repeat(radius, 2) * rng.uniform(0.55, 0.8, 2 * len(bend))
        length = np.repeat(length, 2) * rng.uniform(0.6, 0.95, 2 * len(bend))
    for x0, y0 in chest.hila:
        away = distance((plane.x - x0) / 1.3, (plane.y - y0 - 0.6) / 2.2)
        total += rng.uniform(1.5, 3.0) * np.exp(-(np.minimum(away, 6) ** 2))
    return total


def _ribs(rng: np.random.Generator, chest: Chest) -> Field:
    """Bone of the ribs: rings around the cage, tilted so that the front lies lower than the back."""
    p, q, y = chest.p, chest.q, chest.plane.y
    around = np.minimum(q / (chest.flank + 0.5), 1)
    facing = np.sqrt(1 - around**2)  # 1 in the midline, 0 at the side
    outline = edge(chest.flank + 0.5 - q, 0.3) * (y > middle_of(p.apex) - 0.8)
    # A ray along a rib's side crosses more of it.
    path = 1 / np.sqrt(facing**2 + 0.12)
    strength = rng.uniform(0.85, 1.15, 14).astype(np.float32)
    bone: Field = np.zeros_like(y)
    for back, fall in ((True, p.rib_tilt[0]), (False, p.rib_tilt[1])):
        fall_here = fall * (1 + 0.02 * (y - 2))
        level = y + fall_here * facing if back else y - fall_here * facing
        number = np.interp(level, p.ribs, np.arange(12.0), left=-1, right=13).astype(np.float32)
        nearest = np.rint(number)
        spacing = np.float32((p.ribs[-1] - p.ribs[0]) / 11)
        slope = fall_here * around / (np.maximum(facing, 0.15) * (chest.flank + 0.5))
        away = np.abs(number - nearest) * spacing / np.sqrt(1 + slope**2)
        half = p.rib_half * (1.0 if back else 1.2)
        t = away / half
        # A tube: its cortex shows as brighter borders.
        tube = (0.6 + 0.4 * np.minimum(t, 1) ** 4) * edge(half - away, max(0.3, chest.plane.pixel))
        here = (nearest >= 0) & (nearest <= 11)
        # Towards the breast bone ribs are cartilage.
        seen = edge(q - 1.6, 1.0) if back else 0.75 * edge(q - 0.45 * chest.width, 5.0)
        bone += strength[np.clip(nearest, 0, 11).astype(np.int64)] * tube * here * seen
    bone *= p.rib_bone * np.minimum(path, 1.6) * outline
    return bone


def _spine(chest: Chest) -> Field:
    p, y = chest.p, chest.plane.y
    from_axis = np.abs(chest.plane.x + 0.4 * p.turn - p.scoliosis * np.sin(0.22 * y))
    half = 1.75 + 0.025 * y
    disc = 0.5 + 0.5 * np.cos((2 * np.pi / 2.35) * (y - float(p.ribs[0])))
    body = edge(half - from_axis + 0.15 * disc, 0.5) * (0.8 + 0.3 * disc)
    process = edge(0.35 - from_axis, 0.4) * edge(disc - 0.6, 0.6)
    pedicle = edge(0.4 - distance(from_axis - 0.65 * half, 1.1 * (1 - disc)), 0.4)
    bone: Field = 0.85 * body + 0.4 * process + 0.35 * pedicle
    return bone


def _shoulder_girdle(chest: Chest) -> Field:
    """Bone of clavicles, scapulae and humeri."""
    p, y = chest.p, chest.plane.y
    x = chest.plane.x
    joint_x = middle_of(p.half_width) + p.wall + 1.8
    # The inner ends lie in front, so they follow the patient's turn.
    q = np.abs(x - 0.9 * p.turn * np.exp(-chest.q / 6))
    inner, rise, bow = p.clavicle
    t = np.clip((q - 1.4) / (joint_x - 2.5), 0, 1)
    axis = inner - rise * t - bow * np.sin(2 * np.pi * t)
    slope = (rise + 2 * np.pi * bow * np.cos(2 * np.pi * t)) / (joint_x - 2.5)
    away = np.abs(y - axis) / np.sqrt(1 + slope**2)
    half = 0.55 + 0.35 * np.exp(-(((q - 1.4) / 1.6) ** 2))
    tube = (0.55 + 0.45 * np.minimum(away / half, 1) ** 3) * edge(half - away, 0.3)
    clavicle = tube * edge(q - 1.3, 0.5) * edge(joint_x - 1 - q, 0.8)
    # Scapula: a thin triangle with strong borders.
    inwards = 4.2 * p.scapula
    corners = (
        (joint_x - 1.6, p.shoulder + 0.3),
        (joint_x - 7.0 - inwards, p.shoulder + 0.6),
        (joint_x - 2.6 - 1.1 * inwards, p.shoulder + 13.5),
    )
    sheet: Field | None = None
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ux, uy = bx - ax, by - ay
        plane = ((q - ax) * -uy + (y - ay) * ux) / -float(np.hypot(ux, uy))
        sheet = plane if sheet is None else smooth_min(sheet, plane, 1.5)
    assert sheet is not None
    scapula = 0.32 * edge(sheet, 0.4) + 0.7 * edge(0.35 - np.abs(sheet - 0.2), 0.5)
    ridge = capsule(q, y, corners[0], (corners[1][0], corners[1][1] + 2.5), 0.5)
    reach = float(np.sin(p.arm)), float(np.cos(p.arm))
    joint = (joint_x + 0.6, p.shoulder + 1.0)
    shaft = capsule(q, y, joint, (joint[0] + 60 * reach[0], joint[1] + 60 * reach[1]), 1.2)
    head = 2.3 - distance(q - joint[0], y - joint[1])
    humerus = 1.4 * chord(np.maximum(head, 0), 2.3) + 1.1 * edge(shaft, 0.3) * (
        0.6 + 0.4 * edge(0.5 - shaft, 0.4)
    )
    bone: Field = 1.2 * clavicle + scapula + 0.4 * edge(ridge, 0.5) + humerus
    return bone


def _airways(chest: Chest) -> Field:
    """Air in trachea and main bronchi."""
    p, x, y = chest.p, chest.plane.x, chest.plane.y
    x0, carina = 0.6 * p.turn - 0.1, -3.2
    trachea = capsule(x, y, (x0, -30.0), (x0, carina), 0.85)
    bronchi = np.maximum(
        capsule(x, y, (x0, carina), (-3.0, carina + 3.2), 0.6),
        capsule(x, y, (x0, carina), (3.6, carina + 2.6), 0.5),
    )
    return 2.2 * chord(trachea, 0.85) + 1.4 * chord(bronchi, 0.6)


def _stomach(rng: np.random.Generator, chest: Chest) -> Field:
    """Air in the stomach, with a level in who stands, and in the bowel."""
    p, x, y = chest.p, chest.plane.x, chest.plane.y
    gas: Field = np.zeros_like(x)
    gx, below, a, b = p.gas
    if a:
        y0 = p.dome[1] + below + b
        bubble = ellipse(x - gx, y - y0, a, b)
        if not p.ap:
            bubble = np.minimum(bubble, y0 + 0.3 * b - y)
        gas = gas + 3.5 * chord(bubble, min(a, b))
    for _ in range(int(rng.integers(0, 4))):
        x0, y0, r = rng.uniform(2, 11), p.dome[1] + rng.uniform(3.5, 8), rng.uniform(0.6, 1.6)
        gas = gas + 2.0 * chord(ellipse(x - x0, y - y0, r * 1.3, r), r)
    return gas * edge(-chest.diaphragm - 0.3, 0.4)
