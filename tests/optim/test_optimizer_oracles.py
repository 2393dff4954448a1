"""Fifty steps of each optimizer against its paper's algorithm written out in plain fp64 numbers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import luthier.optim
from luthier.config.plugins import describe, load_plugin
from luthier.optim.pieces import About

Array = NDArray[np.float64]
Step = Callable[[Array, Array, int], Array]
LR, DECAY = 0.02, 0.1


def lion(about: About) -> Step:
    m: list[Any] = [0.0]

    def step(w: Array, g: Array, t: int) -> Array:
        c = 0.9 * m[0] + 0.1 * g
        m[0] = 0.99 * m[0] + 0.01 * g
        return w - LR * (np.sign(c) + DECAY * w)

    return step


def adam_like(beta1: float, beta2: float, blocks: Callable[[Array], Array] = lambda g: g) -> Step:
    s: dict[str, Any] = {"m": 0.0, "v": 0.0}

    def step(w: Array, g: Array, t: int) -> Array:
        s["m"] = beta1 * s["m"] + (1 - beta1) * g
        s["v"] = beta2 * s["v"] + (1 - beta2) * blocks(g * g)
        return w - LR * (s["m"] / (1 - beta1**t) / (np.sqrt(s["v"] / (1 - beta2**t)) + 1e-8) + DECAY * w)

    return step


def adamw(about: About) -> Step:
    return adam_like(0.9, 0.999)


def adam_mini(about: About) -> Step:
    def blocks(square: Array) -> Array:
        if square.ndim == 1:
            return np.full_like(square, square.mean())
        rows = about.head_rows or 1
        means = [square[i : i + rows].mean() for i in range(0, len(square), rows)]
        return np.repeat(means, rows)[:, None] * np.ones_like(square)

    return adam_like(0.9, 0.999, blocks)


def ademamix(about: About) -> Step:
    s: dict[str, Any] = {"m": 0.0, "n": 0.0, "v": 0.0}
    warm, alpha_end, beta_end = 30, 5.0, 0.9999

    def step(w: Array, g: Array, t: int) -> Array:
        alpha, beta3 = min(t / warm, 1) * alpha_end, beta_end
        if t < warm:
            # half-lives between that of 0.9 and that of the end, on a straight line
            life = (1 - t / warm) * math.log(0.5) / math.log(0.9) + t / warm * math.log(0.5) / math.log(
                beta_end
            )
            beta3 = 0.5 ** (1 / life)
        s["m"] = 0.9 * s["m"] + 0.1 * g
        s["n"] = beta3 * s["n"] + (1 - beta3) * g
        s["v"] = 0.999 * s["v"] + 0.001 * g * g
        root = np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8
        return w - LR * ((s["m"] / (1 - 0.9**t) + alpha * s["n"]) / root + DECAY * w)

    return step


class Factors:
    """A mean of squares: of a matrix its rows and columns."""

    def __init__(self) -> None:
        self.r: Any = 0.0
        self.c: Any = 0.0

    def follow(self, square: Array, share: float) -> Array:
        """The mean that these stand for."""
        if square.ndim == 1:
            self.r = (1 - share) * self.r + share * square
            return self.r
        self.r = (1 - share) * self.r + share * square.mean(1)
        self.c = (1 - share) * self.c + share * square.mean(0)
        return np.outer(self.r, self.c) / self.r.mean()


def clipped(u: Array) -> Array:
    return u / max(1.0, float(np.sqrt((u * u).mean())))


def adafactor(about: About) -> Step:
    factors = Factors()

    def step(w: Array, g: Array, t: int) -> Array:
        v = factors.follow(g * g + 1e-30, t**-0.8)
        return w - LR * (clipped(g / np.sqrt(v)) + DECAY * w)

    return step


def came(about: About) -> Step:
    squares, distances = Factors(), Factors()
    m: list[Any] = [0.0]

    def step(w: Array, g: Array, t: int) -> Array:
        u = clipped(g / np.sqrt(squares.follow(g * g + 1e-30, 0.001)))
        m[0] = 0.9 * m[0] + 0.1 * u
        update = m[0]
        if g.ndim > 1:
            update = m[0] / np.sqrt(distances.follow((u - m[0]) ** 2 + 1e-16, 0.0001))
        return w - LR * (update + DECAY * w)

    return step


def muon(about: About) -> Step:
    m: list[Any] = [0.0]

    def step(w: Array, g: Array, t: int) -> Array:
        m[0] = 0.95 * m[0] + 0.05 * g
        x = 0.05 * g + 0.95 * m[0]
        x = x / np.linalg.norm(x)
        for _ in range(5):
            u, s, vh = np.linalg.svd(x, full_matrices=False)  # the polynomial acts on singular values
            x = u @ np.diag(3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5) @ vh
        return w - LR * (0.2 * math.sqrt(max(w.shape)) * x + DECAY * w)

    return step if about.number == 0 else adamw(about)


def schedule_free(about: About) -> Step:
    s: dict[str, Any] = {"v": 0.0}

    def step(y: Array, g: Array, t: int) -> Array:
        if t == 1:
            s["z"] = s["x"] = y
        s["v"] = 0.999 * s["v"] + 0.001 * g * g
        s["z"] = s["z"] - LR * (g / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8) + DECAY * y)
        s["x"] = (1 - 1 / t) * s["x"] + s["z"] / t  # all rates are equal
        return 0.1 * s["z"] + 0.9 * s["x"]

    return step


def soap(about: About) -> Step:
    s: dict[str, Any] = {"m": 0.0, "v": 0.0}

    def step(w: Array, g: Array, t: int) -> Array:
        if t == 1:
            s["l"], s["r"] = 0.05 * g @ g.T, 0.05 * g.T @ g
            s["ql"], s["qr"] = np.linalg.eigh(s["l"])[1], np.linalg.eigh(s["r"])[1]
            return w
        turned = s["ql"].T @ g @ s["qr"]
        s["m"] = 0.95 * s["m"] + 0.05 * g
        s["v"] = 0.95 * s["v"] + 0.05 * turned**2
        n = t - 1
        mean = s["ql"].T @ s["m"] @ s["qr"] / (1 - 0.95**n)
        update = s["ql"] @ (mean / (np.sqrt(s["v"] / (1 - 0.95**n)) + 1e-8)) @ s["qr"].T
        s["l"] = 0.95 * s["l"] + 0.05 * g @ g.T
        s["r"] = 0.95 * s["r"] + 0.05 * g.T @ g
        if n % 10 == 0:
            s["ql"], s["qr"] = np.linalg.qr(s["l"] @ s["ql"])[0], np.linalg.qr(s["r"] @ s["qr"])[0]
        return w - LR * (update + DECAY * w)

    return step if about.number == 0 else adam_like(0.95, 0.95)


def galore(about: About) -> Step:
    s: dict[str, Any] = {"m": 0.0, "v": 0.0}

    def step(w: Array, g: Array, t: int) -> Array:
        if (t - 1) % 20 == 0:
            s["p"] = np.linalg.svd(g)[0][:, :3]
        r = s["p"].T @ g
        s["m"] = 0.9 * s["m"] + 0.1 * r
        s["v"] = 0.999 * s["v"] + 0.001 * r * r
        n = s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)
        return w - LR * (0.25 * s["p"] @ n + DECAY * w)

    return step if about.number == 0 else adamw(about)


def sophia(about: About) -> Step:
    """The estimate of every fourth step is that of 7 predictions with half the gradient."""
    s: dict[str, Any] = {"m": 0.0, "h": 0.0}

    def step(w: Array, g: Array, t: int) -> Array:
        if (t - 1) % 4 == 0:
            s["h"] = 0.99 * s["h"] + 0.01 * 7 * (0.5 * g) ** 2
        s["m"] = 0.96 * s["m"] + 0.04 * g
        return w - LR * (np.clip(s["m"] / np.maximum(0.5 * s["h"], 1e-12), -1, 1) + DECAY * w)

    return step


def q_galore(about: About) -> Step:
    """Projections on 16 even steps between their ends; twice the pause after 2 of |cosine| 0.3 on the mean."""
    s: dict[str, Any] = {"m": 0.0, "v": 0.0, "due": 1, "pause": 5, "seen": []}

    def step(w: Array, g: Array, t: int) -> Array:
        if t == s["due"]:
            p = np.linalg.svd(g)[0][:, :3]
            if "p" in s:
                norms = np.linalg.norm(s["p"], axis=0) * np.linalg.norm(p, axis=0)
                s["seen"].append(np.mean(np.abs((s["p"] * p).sum(0) / norms)))
            if len(s["seen"]) >= 2 and np.mean(s["seen"][-2:]) >= 0.3:
                s["pause"], s["seen"] = 2 * s["pause"], []
            s["due"] = t + s["pause"]
            # 256 to a block: the 18 numbers are filled up with zeros, which lie between their ends
            least, most = np.float32(p.min()), np.float32(p.max())
            size = np.float32((most - least) / np.float32(15))
            s["p"] = (least + np.round((p.astype(np.float32) - least) / size) * size).astype(np.float64)
        r = s["p"].T @ g
        s["m"] = 0.9 * s["m"] + 0.1 * r
        s["v"] = 0.999 * s["v"] + 0.001 * r * r
        n = s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)
        return w - LR * (0.25 * s["p"] @ n + DECAY * w)

    return step if about.number == 0 else adamw(about)


def apollo(about: About) -> Step:
    s: dict[str, Any] = {"m": 0.0, "v": 0.0, "norm": math.inf}

    def step(w: Array, g: Array, t: int) -> Array:
        seed = about.number * 1_000_003 + (t - 1) // 20
        draw = torch.Generator().manual_seed(seed)
        p = torch.randn(3, 6, generator=draw, dtype=torch.float64).numpy() / math.sqrt(3)
        r = p @ g
        s["m"] = 0.9 * s["m"] + 0.1 * r
        s["v"] = 0.999 * s["v"] + 0.001 * r * r
        n = s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)
        u = g * (np.linalg.norm(n, axis=0) / (np.linalg.norm(r, axis=0) + 1e-8))
        most = 1.01 * s["norm"]
        if np.linalg.norm(u) > most:
            u = u / np.linalg.norm(u) * most
        s["norm"] = np.linalg.norm(u)
        return w - LR * (u + DECAY * w)

    return step if about.number == 0 else adamw(about)


def in_few_bits(bits: int, block: int, square_map: list[float]) -> Callable[[About], Step]:
    """AdamW whose moments go through the nearest of few values, searched for one by one."""
    signed = [0.0, 1.0]
    for power in range(bits - 1):
        count = 2**power
        middles = [0.1 + 0.9 * (i + 0.5) / count for i in range(count)]
        signed += [sign * 10.0 ** (power - bits + 2) * m for m in middles for sign in (1, -1)]

    def kept(value: Array, table: list[float]) -> Array:
        flat, out = value.ravel(), np.empty(value.size)
        for start in range(0, flat.size, block):
            part = flat[start : start + block]
            scale = np.abs(part).max()
            near = np.array(sorted(table))
            index = np.abs(part[:, None] / (scale or 1.0) - near[None, :]).argmin(1)
            if near[0] == 0:
                index = np.where((part > 0) & (index == 0), 1, index)
            out[start : start + block] = near[index] * scale
        return out.reshape(value.shape)

    def oracle(about: About) -> Step:
        s: dict[str, Any] = {"m": 0.0, "v": 0.0}

        def step(w: Array, g: Array, t: int) -> Array:
            m = 0.9 * s["m"] + 0.1 * g
            v = 0.999 * s["v"] + 0.001 * g * g
            whole = w.size < 4096
            s["m"], s["v"] = (m, v) if whole else (kept(m, signed), kept(v, square_map))
            return w - LR * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + DECAY * w)

        return step

    return oracle


def unsigned(bits: int) -> list[float]:
    values = [0.0, 1.0]
    for power in range(bits - 1):
        count = 2 ** (power + 1)
        values += [10.0 ** (power - bits + 2) * (0.1 + 0.9 * (i + 0.5) / count) for i in range(count)]
    return values


ORACLES: dict[str, tuple[Callable[[About], Step], dict[str, Any]]] = {
    "adafactor": (adafactor, {}),
    "adam_mini": (adam_mini, {}),
    "adamw": (adamw, {}),
    "adamw_4bit": (in_few_bits(4, 128, [i / 16 for i in range(1, 17)]), {}),
    "adamw_8bit": (in_few_bits(8, 256, unsigned(8)), {}),
    "ademamix": (ademamix, {"slow_warmup_steps": 30}),
    "apollo": (apollo, {"rank": 3, "update_every": 20}),
    "came": (came, {}),
    "galore": (galore, {"rank": 3, "update_every": 20}),
    "lion": (lion, {}),
    "q_galore": (q_galore, {"rank": 3, "update_every": 5, "alike": 0.3, "window": 2}),
    "muon": (muon, {}),
    "schedule_free": (schedule_free, {}),
    "soap": (soap, {}),
    "sophia": (sophia, {"gamma": 0.5, "curvature_every": 4}),
}


@pytest.mark.parametrize("name", sorted(describe(luthier.optim)))
def test_fifty_steps_are_the_papers(name: str) -> None:
    oracle, options = ORACLES[name]  # a new optimizer needs one
    draw = np.random.default_rng(0)
    big = name.endswith("bit")
    shapes = [(70, 65) if big else (6, 9), (3, 5), (5,)]
    if name == "soap":  # gradients of full rank, or their eigenvectors are any
        shapes = [(6, 6), (4, 4), (5,)]
    abouts = {
        0: About("layers.0.q_proj.weight", 0, False, 3),
        1: About("embed.weight", 1, True),
        2: About("b", 2),
    }
    if big:
        abouts[0] = About("w", 0)
    weights = [draw.normal(size=shape) for shape in shapes]
    targets = [draw.normal(size=shape) for shape in shapes]
    scales = [np.exp(draw.normal(size=shape)) for shape in shapes]
    parameters = [nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = load_plugin(luthier.optim, name)(weight_decay=DECAY, **options).build(
        [(abouts[i].name, p) for i, p in enumerate(parameters)],
        LR,
        about={id(p): abouts[i] for i, p in enumerate(parameters)},
    )
    for group in optimizer.param_groups:
        group["weight_decay"] = DECAY  # of vectors too
    # galore, apollo, muon and soap leave the table or vectors to AdamW
    steps = [oracle(abouts[i]) for i in range(3)]
    if name == "soap":
        steps[1] = oracle(About(number=0))  # it takes tables too
    for t in range(1, 51):
        for i, parameter in enumerate(parameters):
            noise = draw.normal(size=shapes[i])
            gradient = scales[i] * (weights[i] - targets[i]) + 0.3 * noise
            parameter.grad = torch.tensor(gradient)
            weights[i] = steps[i](weights[i], gradient, t)
        if optimizer.curvature_every and (t - 1) % optimizer.curvature_every == 0:
            whole = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None if parameter.grad is None else 0.5 * parameter.grad
            optimizer.curve(7.0)
            for parameter, gradient in zip(parameters, whole, strict=True):
                parameter.grad = gradient
        optimizer.step()
        # whatever is kept in fp32 (scales of few bits, fused counts) must not let the two walk apart
        if big:
            _follow(weights, parameters, t)
    for parameter, weight in zip(parameters, weights, strict=True):
        torch.testing.assert_close(parameter.detach(), torch.tensor(weight), rtol=1e-6, atol=1e-6)


def _follow(weights: list[Array], parameters: list[nn.Parameter], t: int) -> None:
    """Codes that are rounded the other way for a last digit are few, and then followed."""
    for i, parameter in enumerate(parameters):
        ours = parameter.detach().numpy()
        apart = np.abs(ours - weights[i]) > 1e-6
        assert apart.mean() < 0.01, f"step {t}: {apart.mean():.1%} of the weights are apart"
        weights[i] = np.where(apart, ours, weights[i])
