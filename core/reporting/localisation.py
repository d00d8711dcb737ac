"""Whether the attention of an attribute falls on the part that shows it, where part locations are known."""

from __future__ import annotations

import numpy as np
import pandas as pd


def attention_on_parts(
    theta: np.ndarray, locations: np.ndarray, attribute_part: np.ndarray, present: np.ndarray
) -> pd.DataFrame:
    """Attention within one region of a part, for attributes that the image's class has and whose part is visible.

    Args:
        theta: (B,R,K) region weights over a square grid, row by row.
        locations: (B,P,3) x and y of each part as shares of the image's side, and whether it is visible.
        attribute_part: (K,) number of the part that shows an attribute.
        present: (B,K) whether the image's class has the attribute.

    Returns:
        One row a part: ``pairs`` counted, ``own`` the mean share of attention on the part, ``chance`` what uniform
        attention would have there, ``others`` what the attributes of all other parts have there (which rules out that
        attention merely falls on the creature).
    """
    B, R, K = theta.shape
    side = round(R**0.5)
    cells = (np.arange(side) + 0.5) / side
    rows = []
    for part in range(locations.shape[1]):
        x, y, visible = (locations[:, part, i] for i in range(3))
        reach = 1.5 / side + 1e-9  # the part's cell and its neighbours
        near_x = np.abs(cells - x[:, None]) <= reach  # (B,side)
        near_y = np.abs(cells - y[:, None]) <= reach
        near = (near_y[:, :, None] & near_x[:, None, :]).reshape(B, R)
        mass = np.einsum("brk,br->bk", theta, near)  # (B,K)
        shown = visible.astype(bool)[:, None] & present.astype(bool)  # (B,K)
        mine = shown & (attribute_part == part)
        other = shown & (attribute_part != part)
        counted = near.mean(axis=1)[:, None].repeat(K, axis=1)
        rows.append(
            {
                "part": part,
                "pairs": int(mine.sum()),
                "own": float(mass[mine].mean()),
                "chance": float(counted[mine].mean()),
                "others": float(mass[other].mean()),
            }
        )
    return pd.DataFrame(rows)
