"""The gradients of one tensor for each example, mostly without making them: their norms, and weighted sums of them.

What T tokens add to a matrix is a product of two thin factors, and both the norm of that product and a sum of such products
over examples cost less than the products. Source: Goodfellow 2015 (Efficient per-example gradient computations); Li et al.
2022 (Large language models can be strong differentially private learners), section 4, for T > 1; Bu et al. 2023
(Differentially private optimization on large model at small cost) for the choice between the two forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Whole:
    """The gradients themselves."""

    gradients: Tensor  # (B, *shape of the tensor)

    def squared_norms(self) -> tuple[Tensor, Tensor]:
        """Squared norms and, as nothing cancels, zeros; both (B,) float64."""
        norms = torch.linalg.vector_norm(self.gradients.flatten(1), dim=1).double()
        return norms.square(), torch.zeros_like(norms)

    def whole(self) -> Whole:
        """Itself."""
        return self

    def of(self, examples: Tensor) -> Whole:
        """The same of some examples."""
        return Whole(self.gradients[examples])

    def add_to(self, total: Tensor, factors: Tensor) -> None:
        """Add the sum over examples of factor times gradient, in place."""
        total.view(-1).addmv_(self.gradients.flatten(1).T, factors)


@dataclass(frozen=True, repr=False)
class Product:
    """left_i^T right_i, what one use of a matrix adds to its gradient for example i."""

    left: Tensor  # (B, T, rows of the matrix), or int64 (B, T): each token adds to one row
    right: Tensor  # (B, T, columns)

    @property
    def width(self) -> int:
        """Numbers for each token."""
        return self.right.shape[2] + (self.left.shape[2] if self.left.dim() == 3 else 1)

    def of(self, examples: Tensor) -> Product:
        """The same of some examples."""
        return Product(self.left[examples], self.right[examples])

    def add_to(self, total: Tensor, factors: Tensor) -> None:
        """Add the sum over examples of factor times product, in place: one matrix product, as for a plain gradient."""
        weights = factors[:, None, None]
        if self.left.dim() == 2:
            total.index_add_(0, self.left.flatten(), (self.right * weights).flatten(0, 1))
        elif self.left.shape[2] < self.right.shape[2]:
            total.addmm_((self.left * weights).flatten(0, 1).T, self.right.flatten(0, 1))
        else:
            total.addmm_(self.left.flatten(0, 1).T, (self.right * weights).flatten(0, 1))

    def whole(self, shape: torch.Size) -> Tensor:
        """The products, (B, rows, columns)."""
        if self.left.dim() == 3:
            return torch.bmm(self.left.mT, self.right)
        gradients = self.right.new_zeros(len(self.right), *shape)
        return gradients.scatter_add_(1, self.left[:, :, None].expand_as(self.right), self.right)


@dataclass(frozen=True, repr=False)
class Products:
    """Sums of products: a matrix that is used more than once, by one layer or by several."""

    uses: tuple[Product, ...]
    shape: torch.Size

    def squared_norms(self) -> tuple[Tensor, Tensor]:
        """Squared norms, and the squared norms there would be if nothing cancelled; both (B,) float64."""
        examples = len(self.uses[0].right)
        squares, bounds = (torch.zeros(examples, dtype=torch.float64, device=self.uses[0].right.device) for _ in range(2))
        for one, other in combinations_with_replacement(self.uses, 2):
            rows, columns = _inner_products(one.left, other.left), _inner_products(one.right, other.right)
            squares += (1 if one is other else 2) * (rows * columns).sum(dim=(1, 2), dtype=torch.float64)
            if one is other:
                lengths = rows.diagonal(dim1=1, dim2=2).double() * columns.diagonal(dim1=1, dim2=2).double()
                bounds += lengths.sqrt().sum(dim=1)
        return squares, bounds.square()

    def whole(self) -> Whole:
        """The gradients themselves."""
        return Whole(torch.stack([use.whole(self.shape) for use in self.uses]).sum(dim=0))

    def of(self, examples: Tensor) -> Products:
        """The same of some examples."""
        return Products(tuple(use.of(examples) for use in self.uses), self.shape)

    def add_to(self, total: Tensor, factors: Tensor) -> None:
        """Add the sum over examples of factor times gradient, in place."""
        for use in self.uses:
            use.add_to(total, factors)


def total_of(uses: Sequence[Whole | Product], shape: torch.Size) -> Whole | Products:
    """The sum of all that one tensor's uses add to its gradients, made only where it is no larger than its factors.

    That is also where making it is cheaper: with T tokens, making a gradient of m x n takes T m n multiplications, its norm
    from the factors T^2 (m + n).
    """
    products = [use for use in uses if isinstance(use, Product)]
    if len(products) == len(uses) and sum(use.right.shape[1] * use.width for use in products) < shape.numel():
        return Products(tuple(products), shape)
    made = [use.gradients for use in uses if isinstance(use, Whole)]
    made += [Products((use,), shape).whole().gradients for use in products]
    return Whole(made[0] if len(made) == 1 else torch.stack(made).sum(dim=0))


def _inner_products(one: Tensor, other: Tensor) -> Tensor:
    # Of every two tokens of an example, (B, T, T'). A row number stands for the row of an identity matrix.
    if one.dim() == other.dim() == 2:
        return one[:, :, None] == other[:, None, :]
    if one.dim() == 2:
        return other.gather(2, one[:, None, :].expand(-1, other.shape[1], -1)).mT
    if other.dim() == 2:
        return _inner_products(other, one).mT
    return torch.bmm(one, other.mT)
