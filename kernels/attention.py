"""`tree_attention`: checks, then the backend. `kernels.reference` states what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from .allocator import PhysicalKVAllocator
from .grouped import attend_grouped, plan_grouped
from .plan import plan_tree
from .reference import ReferencePlan, attend_reference

BACKENDS = ("triton", "torch", "reference")


class AttentionPlan(Protocol):
    """Who reads which blocks, in the form one backend wants. Valid for every layer, until a branch of it changes."""

    @property
    def branch_ids(self) -> tuple[int, ...]: ...

    @property
    def num_queries(self) -> int: ...

    @property
    def backend(self) -> str: ...


def plan_attention(
    allocator: PhysicalKVAllocator,
    branch_ids: Sequence[int],
    q_lens: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> AttentionPlan:
    """Plan attention of the last `q_lens[i]` tokens (default 1) of each branch, once for all layers.

    `backend`: "triton" (default on CUDA), "torch" (default elsewhere) or "reference". Raises ValueError for an
    unknown backend, no branch, a repeated branch or impossible query counts; UnknownBranch.
    """
    name = _backend(allocator, backend)
    tree = plan_tree(allocator, branch_ids, q_lens)
    if name == "reference":
        return ReferencePlan(tree)
    if name == "torch":
        return plan_grouped(allocator, tree)
    from .triton_tree import plan_triton  # Triton does not exist on every platform

    return plan_triton(allocator, tree)


@torch.no_grad()
def tree_attention(
    q: torch.Tensor,
    allocator: PhysicalKVAllocator,
    branch_ids: Sequence[int] | None = None,
    *,
    layer: int = 0,
    plan: AttentionPlan | None = None,
    q_lens: Sequence[int] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    backend: str | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend each query token to its own root-to-leaf path.

    q `[T, Hq, D]`, the last `q_lens[i]` tokens (default 1) of each branch, branch after branch; their K and V must be
    in the cache already. Returns `[T, Hq, D]` in q's dtype, written to `out` if given. Give `branch_ids`, or a `plan`
    from `plan_attention` to reuse over layers. `scale` defaults to D ** -0.5. A key is visible if its position on the
    branch is at most the query's and, with a `window`, above the query's minus `window`. `softcap` bounds the scores
    by softcap * tanh(score / softcap). `sinks` `[Hq]` are logits that count in the denominator only.

    With a plan, q may have more rows than the plan has queries, as captured graphs need: such padding plays no part,
    its rows of `out` are left as they are, and are zero in a result made here. When a captured graph is replayed after
    an update of its plan, rows past the queries keep what they held.
    Raises ValueError for shapes, devices or options that do not fit. Inference only: no gradient flows.
    """
    _check_tensors(q, allocator, out, sinks)
    if not 0 <= layer < allocator.num_layers:
        raise ValueError(f"layer {layer} is not one of the pool's {allocator.num_layers}")
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, not {scale}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be positive and finite, not {softcap}")
    if plan is None:
        if branch_ids is None:
            raise ValueError("tree_attention needs branch_ids or a plan")
        plan = plan_attention(allocator, branch_ids, q_lens, backend=backend)
    else:
        _check_plan(plan, allocator, branch_ids, q_lens, backend)
    asked = plan.num_queries
    if q.shape[0] < asked or (q.shape[0] > asked and branch_ids is not None):
        raise ValueError(f"q has {q.shape[0]} tokens but the branches ask with {asked}")
    settings = {"layer": layer, "scale": scale, "window": window, "softcap": softcap, "sinks": sinks}
    attend = _attend(plan.backend)
    if out is None and plan.backend == "torch" and asked == q.shape[0]:
        return attend(q, allocator, plan, **settings).to(q.dtype)  # a copy less
    if out is None:
        make = torch.empty_like if q.shape[0] == asked else torch.zeros_like
        out = make(q, memory_format=torch.contiguous_format)
    # A captured launch serves later plans too, with more queries among the same rows.
    if plan.backend == "triton" or asked == q.shape[0]:
        attend(q, allocator, plan, out=out, **settings)
    else:
        attend(q[:asked], allocator, plan, out=out[:asked], **settings)
    return out


def _attend(backend: str) -> Callable[..., torch.Tensor]:
    if backend == "torch":
        return attend_grouped
    if backend == "reference":
        return attend_reference
    from .triton_tree import attend_triton

    return attend_triton


def _backend(allocator: PhysicalKVAllocator, backend: str | None) -> str:
    if backend is None or backend == "auto":
        return "triton" if allocator.device.type == "cuda" else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    return backend


def _check_tensors(
    q: torch.Tensor, allocator: PhysicalKVAllocator, out: torch.Tensor | None, sinks: torch.Tensor | None
) -> None:
    if q.dim() != 3 or not q.is_floating_point():
        raise ValueError(f"q must be floating point [tokens, heads, head_dim], not {q.dtype} {tuple(q.shape)}")
    if q.shape[2] != allocator.head_dim:
        raise ValueError(f"q has head_dim {q.shape[2]}, the pool {allocator.head_dim}")
    if not q.shape[1] or q.shape[1] % allocator.num_kv_heads:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of the pool's {allocator.num_kv_heads} kv heads")
    if q.device.type != allocator.device.type:
        raise ValueError(f"q is on {q.device}, the pool on {allocator.device}")
    if sinks is not None and (tuple(sinks.shape) != (q.shape[1],) or sinks.device != q.device):
        raise ValueError(f"sinks must be [{q.shape[1]}] on {q.device}, not {tuple(sinks.shape)} on {sinks.device}")
    if out is not None and (out.shape != q.shape or out.dtype != q.dtype or out.device != q.device):
        raise ValueError(f"out must be like q, {q.dtype} {tuple(q.shape)}, not {out.dtype} {tuple(out.shape)}")


def _check_plan(
    plan: AttentionPlan,
    allocator: PhysicalKVAllocator,
    branch_ids: Sequence[int] | None,
    q_lens: Sequence[int] | None,
    backend: str | None,
) -> None:
    if branch_ids is not None and tuple(branch_ids) != plan.branch_ids:
        raise ValueError("branch_ids are not those of the plan")
    if q_lens is not None:
        raise ValueError("q_lens are part of the plan; give them to plan_attention")
    if backend is not None and _backend(allocator, backend) != plan.backend:
        raise ValueError(f"the plan is for backend {plan.backend!r}, not {backend!r}")
