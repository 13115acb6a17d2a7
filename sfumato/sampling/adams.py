"""Weights of linear multistep methods: integrals of Lagrange's polynomials through the last sigmas."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.polynomial import Polynomial, legendre


def in_sigma(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integral over sigma, from ``start`` to ``end``, of each Lagrange polynomial in sigma.

    Gauss-Legendre quadrature, exact for as many as eight nodes.
    """
    points, weights = legendre.leggauss(4)
    half = (end - start) / 2.0
    at = start + half * (points + 1.0)
    return [float(half * np.dot(weights, _lagrange(nodes, j, at))) for j in range(len(nodes))]


def in_log_sigma(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integral over sigma, from ``start`` to ``end`` > 0, of each Lagrange polynomial in log sigma.

    With u = log(sigma / start) it is start * int P(u) e^u du, whose antiderivative is e^u (P - P' + P'' - …).
    """
    logs = [math.log(node / start) for node in nodes]
    last = math.log(end / start)
    found = []
    for j, own in enumerate(logs):
        basis = Polynomial([1.0])
        for k, other in enumerate(logs):
            if k != j:
                basis = basis * Polynomial([-other, 1.0]) / (own - other)
        antiderivative, derivative = basis, basis
        for k in range(1, len(logs)):
            derivative = derivative.deriv()
            antiderivative = antiderivative + (-1) ** k * derivative
        found.append(float(end * antiderivative(last) - start * antiderivative(0.0)))
    return found


def _lagrange(nodes: Sequence[float], j: int, at: np.ndarray) -> np.ndarray:
    product = np.ones_like(at)
    for k, node in enumerate(nodes):
        if k != j:
            product = product * (at - node) / (nodes[j] - node)
    return product
