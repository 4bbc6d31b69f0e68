"""Backgrounds of drawn pictures: height x width x 3, float32, RGB, 0 to 255."""

import cv2
import numpy as np

from tools.synthetic.items import COLOURS


def grey(plane: np.ndarray) -> np.ndarray:
    """Three equal channels; far faster than broadcasting over an axis of length 3."""
    return cv2.cvtColor(np.asarray(plane, np.float32), cv2.COLOR_GRAY2RGB)


def studio(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    x, y = (np.linspace(-1, 1, side, dtype=np.float32) for side in (width, height))
    y = y[:, None]
    return grey(rng.uniform(222, 252) - rng.uniform(4, 22) * (x * x + y * y))


def gradient(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    corners = np.stack([_pastel(rng), _pastel(rng)])[:, None]
    corners = np.concatenate([corners, corners[:: rng.choice((-1, 1))]], axis=1)
    return cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)


def room(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    wall = _pastel(rng)
    floor = np.array((188, 152, 118), np.float32) * np.float32(rng.uniform(0.7, 1.15))
    column = np.empty((height, 1, 3), np.float32)
    edge = int(height * rng.uniform(0.74, 0.88))
    column[:edge, 0] = wall * np.linspace(1.0, 0.9, edge)[:, None]
    column[edge:, 0] = floor * np.linspace(0.82, 1.08, height - edge)[:, None]
    column[edge - height // 30 : edge] = 0.4 * wall + 145
    column[edge - 1 : edge + 1] *= 0.8
    picture = cv2.repeat(column, 1, width)
    if rng.random() < 0.6:  # light that falls through a window
        light = np.ones((height // 4, width // 4), np.float32)
        x, y, slant = rng.uniform((0.0, 0.0, -0.2), (0.6, 0.2, 0.2)) * width / 4
        for left in (x, x + 0.05 * width):
            right, low = left + 0.0425 * width, y + 0.55 * height / 4
            pane = [(left, y), (right, y), (right + slant, low), (left + slant, low)]
            cv2.fillPoly(light, [np.array(pane).astype(np.int32)], 1.1)
        window = cv2.resize(cv2.GaussianBlur(light, (0, 0), 1.2), (width, height))
        picture = cv2.multiply(picture, grey(window))
    return picture


def wood(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    tones = np.array(
        [(222, 200, 172), (196, 160, 122), (158, 118, 86), (206, 202, 196)], np.float32
    )
    colour = tones[rng.integers(len(tones))] * rng.uniform(0.93, 1.05)
    grain = rng.normal(0, 0.035, (height // 12, width // 2)).astype(np.float32)
    smooth = cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
    plank = int(rng.integers(34, 60))
    tone = rng.uniform(0.9, 1.06, width // plank + 2)
    at = (np.arange(width) + int(rng.integers(plank))) // plank
    gap = np.where(np.diff(at, prepend=at[0]) > 0, 0.72, 1.0)
    return cv2.multiply(grey((smooth + tone[at]) * gap), np.array((*colour, 0.0)))


def linen(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    rows, columns = rng.normal(0, 0.015, (height, 1)), rng.normal(0, 0.015, (1, width))
    soft = cv2.resize(rng.normal(0, 0.02, (5, 4)).astype(np.float32), (width, height),
                      interpolation=cv2.INTER_CUBIC)  # fmt: skip
    return cv2.multiply(grey(1 + rows + columns + soft), np.array((*_pastel(rng), 0.0)))


def _pastel(rng: np.random.Generator) -> np.ndarray:
    colour = COLOURS[list(COLOURS)[rng.integers(len(COLOURS))]]
    share = np.float32(rng.uniform(0.12, 0.38))
    return share * colour + (1 - share) * np.float32(rng.uniform(205, 238))


BACKGROUNDS = (studio, gradient, room, wood, linen)
