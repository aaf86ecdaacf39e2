"""The transport cost c[j, t]: what it costs to turn word j into word t."""

import weakref

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lmlab.losses.products import multiply

_KINDS = ("frozen", "live", "matrix", "zero_one")


class Cost(nn.Module):
    """A cost c[j, t] >= 0 with c[t, t] = 0, made by one of the four class methods. Never differentiated.

    From an embedding: c[j, t] = 1 - cos(row j, row t); rows that are all zero (padding ids) cost 1 to all
    others. "Frozen" means frozen when `Cost.frozen` is called: call it before the first training step. What
    is frozen is a buffer and belongs to `state_dict()`, else a resumed run would freeze another head.
    """

    kind: str
    vocabulary: int

    def __init__(self, kind: str, vocabulary: int) -> None:
        """Use `Cost.frozen`, `Cost.live`, `Cost.matrix` or `Cost.zero_one`."""
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"kind={kind!r}: call Cost.frozen, Cost.live, Cost.matrix or Cost.zero_one")
        self.kind = kind
        self.vocabulary = vocabulary

    @classmethod
    def frozen(
        cls, embedding: Float[Tensor, "v k"], *, center: bool = False, rank: int | None = None
    ) -> "Cost":
        """Cost by the cosines of an embedding as it is now: an own detached copy, rows at unit length.

        center: subtract the mean row first, which makes the cost blind to a vector added to all rows.
        rank: keep the top `rank` eigenvectors of the rows' Gram matrix, then bring rows to unit length again.
        The copy is float64 for a float64 embedding, else float32.
        """
        _check_embedding(embedding)
        width = embedding.shape[1]
        if rank is not None and not 1 <= rank <= width:
            raise ValueError(f"rank={rank} must be between 1 and the embedding's width {width}, or None")
        rows = embedding.detach().to(_sum_dtype(embedding), copy=True)
        if center:
            rows -= rows.mean(0)
        _normalise(rows)
        if rank is not None:
            wide = rows.double()
            rows = (wide @ torch.linalg.eigh(wide.T @ wide).eigenvectors[:, width - rank :]).to(rows.dtype)
            _normalise(rows)
        cost = cls("frozen", embedding.shape[0])
        cost.register_buffer("embedding", rows)
        return cost

    @classmethod
    def live(cls, embedding: Float[Tensor, "v k"], *, center: bool = False) -> "Cost":
        """Cost by the cosines of an embedding as it is at each call, detached. Nothing is copied or saved.

        Only a weak reference to the tensor is kept: it lives as long as its model does.
        """
        _check_embedding(embedding)
        cost = cls("live", embedding.shape[0])
        cost.__dict__["_source"] = weakref.ref(embedding)
        cost.__dict__["_width"] = embedding.shape[1]
        cost.__dict__["_center"] = center
        return cost

    @classmethod
    def matrix(cls, c: Float[Tensor, "v v"]) -> "Cost":
        """Any table of costs, c[j, t] from j to t. The diagonal must be 0, nothing negative or infinite."""
        if not isinstance(c, Tensor) or not c.is_floating_point():
            raise TypeError(f"c must be a floating-point tensor; got {_describe(c)}")
        if c.ndim != 2 or c.shape[0] != c.shape[1] or c.shape[0] == 0:
            raise ValueError(f"c must be a square table [v v]; got shape {tuple(c.shape)}")
        if not (c.isfinite().all() and (c >= 0).all() and (c.diagonal() == 0).all()):
            raise ValueError("c must be finite and >= 0, with c[t, t] = 0")
        cost = cls("matrix", c.shape[0])
        table = c.detach().to(_sum_dtype(c)).T
        cost.register_buffer("table", table.clone(memory_format=torch.contiguous_format))  # row t: costs to t
        return cost

    @classmethod
    def zero_one(cls, v: int) -> "Cost":
        """c = 1 - delta: every wrong word is equally wrong, so emo = 1 - p_t. Nothing is stored."""
        if v < 1:
            raise ValueError(f"v={v}: a vocabulary has at least one word")
        return cls("zero_one", v)

    def rows(self, ids: Int64[Tensor, " u"]) -> Float[Tensor, "u v"]:
        """Costs to the words `ids`: row i is c[:, ids[i]].

        float64 for a float64 embedding or table, else float32.
        """
        view = CostView(self)
        if self.kind == "zero_one":
            costs = torch.ones(len(ids), self.vocabulary, device=ids.device)
        else:
            costs = view.rows(ids, None)
            if view.cosines:
                costs = (1 - costs).clamp_min_(0)
        return costs.scatter_(1, ids[:, None], 0)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, vocabulary={self.vocabulary}"

    def _embedding(self) -> Tensor:
        """The embedding of a live cost, if it is still what it was."""
        source: Tensor | None = self.__dict__["_source"]()
        shape = (self.vocabulary, self.__dict__["_width"])
        if source is None:
            raise ValueError(
                "the tensor of Cost.live was freed; keep the model alive, or freeze: Cost.frozen(weight)"
            )
        if tuple(source.shape) != shape:
            raise ValueError(
                f"the tensor of Cost.live had shape {shape} and now has {tuple(source.shape)}; "
                "make a new one: Cost.live(weight)"
            )
        return source.detach()


class CostView:
    """A cost as one call of a loss sees it: for a live cost, what must be known of the whole embedding.

    `rows` gives cosines where `cosines` is set (the row pass turns them into costs on its way), else costs;
    neither has its diagonal set to zero, as the row pass takes the target out of every sum.
    """

    def __init__(self, cost: Cost) -> None:
        self.kind = cost.kind
        self.cosines = cost.kind in ("frozen", "live")
        self.mean: Tensor | None = None
        self.inverse: Tensor | None = None
        if cost.kind == "live":
            self.table = cost._embedding()
            self.dtype = _sum_dtype(self.table)
            centre = cost.__dict__["_center"]
            self.mean = self.table.mean(0, dtype=self.dtype) if centre else None
            self.inverse = _inverse_norms(self.table, self.mean, self.dtype)
        elif cost.kind != "zero_one":
            self.table = cost.get_buffer("embedding" if cost.kind == "frozen" else "table")
            self.dtype = _sum_dtype(self.table)

    def rows(self, ids: Tensor, out: Tensor | None) -> Tensor:
        """Row i belongs to word ids[i]; written to `out` [u v] where given."""
        picked = self.table.index_select(0, ids)
        if self.kind == "matrix":
            return picked.to(self.dtype) if out is None else out.copy_(picked)
        if self.kind == "live":
            assert self.inverse is not None
            picked = picked.to(self.dtype)
            if self.mean is not None:
                picked -= self.mean
            picked *= self.inverse[ids, None]
        return self.cosines_with(picked, out)

    def cosines_with(self, vectors: Tensor, out: Tensor | None) -> Tensor:
        """Inner products of `vectors` [u k] with the unit rows of all words: [u v]."""
        table = self.table
        if out is None:
            out = vectors.new_empty(len(vectors), len(table), dtype=self.dtype)
        if table.dtype == out.dtype:
            multiply(vectors.to(table.dtype), table, out)
        else:  # by blocks of words, so that a half-precision table is never copied as a whole
            vectors = vectors.to(self.dtype)
            for start in range(0, len(table), 4096):
                block = table[start : start + 4096].to(self.dtype)
                out[:, start : start + 4096] = torch.mm(vectors, block.T)
        if self.mean is not None:
            out -= (vectors @ self.mean)[:, None].to(out.dtype)
        if self.inverse is not None:
            out *= self.inverse.to(out.dtype)
        return out

    def mixtures(self, tau: Tensor, ids: Tensor | None, out: Tensor) -> None:
        """Writes r_i = Σ_j τ_j c_ij of each row of tau to `out` [r v].

        tau is [r v], or [r k] with the words ids [r k]; it has the type of `out`.
        """
        if self.kind == "matrix":
            out.copy_(_weighted_rows(self.table, tau, ids, out.dtype))
            return
        if self.kind == "zero_one":
            out.zero_()
            alone = None
        else:
            weights = tau
            if self.inverse is not None:
                inverse = self.inverse.to(tau.dtype)
                weights = tau * (inverse if ids is None else inverse[ids])
            mixed = _weighted_rows(self.table, weights, ids, out.dtype)
            if self.mean is not None:
                mixed -= weights.sum(1, keepdim=True) * self.mean.to(out.dtype)
            self.cosines_with(mixed, out)
            norms = torch.linalg.vector_norm(self.table, dim=1) if self.inverse is None else self.inverse
            alone = norms == 0  # padding words: no cosine makes their cost to themselves 0
        torch.sub(tau.sum(1, keepdim=True), out, out=out)
        if alone is None:
            own = tau
        else:
            own = tau * (alone if ids is None else alone[ids])
        if ids is None:
            out -= own
        else:
            out.scatter_add_(1, ids, -own)
        out.clamp_min_(0)


def _weighted_rows(table: Tensor, weights: Tensor, ids: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Σ_j weights[:, j] · table[j], or of the rows `ids`; a table of another type is cast block by block."""
    total = torch.zeros(len(weights), table.shape[1], dtype=dtype, device=table.device)
    if ids is not None:
        for k in range(ids.shape[1]):
            total.addcmul_(weights[:, k, None], table.index_select(0, ids[:, k]).to(dtype))
        return total
    step = len(table) if table.dtype == dtype else 4096
    for start in range(0, len(table), step):
        total.addmm_(weights[:, start : start + step], table[start : start + step].to(dtype))
    return total


def _check_embedding(embedding: Tensor) -> None:
    if not isinstance(embedding, Tensor) or not embedding.is_floating_point():
        raise TypeError(f"embedding must be a floating-point tensor [v k]; got {_describe(embedding)}")
    if embedding.ndim != 2 or 0 in embedding.shape:
        raise ValueError(f"embedding must have shape [v k]; got {tuple(embedding.shape)}")


def _describe(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _normalise(rows: Tensor) -> None:
    """Bring rows to unit length, in place; a row of zeros stays as it is."""
    rows *= _inverse_norms(rows, None, rows.dtype)[:, None]


def _inverse_norms(rows: Tensor, mean: Tensor | None, dtype: torch.dtype) -> Tensor:
    """1 / |row - mean|, 0 for rows of no length; by blocks, so that no second table is held."""
    norms = torch.empty(len(rows), dtype=dtype, device=rows.device)
    for start in range(0, len(rows), 1024):
        block = rows[start : start + 1024].to(dtype)
        if mean is not None:
            block = block - mean
        torch.linalg.vector_norm(block, dim=1, out=norms[start : start + 1024])
    return torch.where(norms > 0, 1 / norms, 0.0)
