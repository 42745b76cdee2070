"""A random split in which each class has its share, as scikit-learn's `train_test_split`."""

import numpy as np


def stratified_split(labels: np.ndarray, num_eval: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled indices of the training and of the evaluation examples.

    They are those of `sklearn.model_selection.train_test_split` for `test_size=num_eval`,
    `stratify=labels` and `random_state=seed`. Importing scikit-learn takes 0.7 s.

    Args:
        labels: int `[N]`; every class has two examples or more.
        num_eval: number of evaluation examples.
        seed: of the choice.
    """
    rng = np.random.RandomState(seed)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    num_train = _shares(counts, len(labels) - num_eval, rng)
    num_left = _shares(counts - num_train, num_eval, rng)
    by_class = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    train, evaluation = [], []
    for members, n, left in zip(by_class, num_train, num_left):
        shuffled = members[rng.permutation(len(members))]
        train.extend(shuffled[:n])
        evaluation.extend(shuffled[n : n + left])
    return rng.permutation(train), rng.permutation(evaluation)


def _shares(counts: np.ndarray, total: int, rng: np.random.RandomState) -> np.ndarray:
    """How many of `total` each class gets: rounded down, and one more by the largest remainders.

    Among equal remainders the classes are chosen at random.
    """
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    missing, remainders = int(total - shares.sum()), exact - shares
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        (equal,) = np.where(remainders == remainder)
        chosen = rng.choice(equal, size=min(len(equal), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares.astype(int)
