"""Student's t without a library of statistics."""

from statistics import NormalDist


def t_quantile(probability: float, freedom: float) -> float:
    """A quantile of Student's t, by its expansion around the normal one (Fisher and Cornish 1960).

    With 9 degrees of freedom or more the error of the 97.5 % quantile is below 0.0005.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
