"""The networks' norms, pools and sums as autograd Functions that keep little for the backward pass.

In the supernet n branches of one kind run side by side: they lie on the channel axis, (B, nC, H, W), so a depthwise, a
pointwise or a norm of all of them is one call. Kept per branch: in the weight step the output of each depthwise
convolution, from which the backward pass recomputes the rest, and of a sep_conv's first pointwise; in the alpha step
the pointwise outputs only. Weights are cast to the maps' type, so that autocast works; batch norm computes its
statistics in float32 whatever that type is.

A forward of any number of tensors takes all its arguments as `*inputs`: beside named ones torch.compile, where nothing
needs a gradient, mistakes two tensors for `ctx` and one.
"""
import torch
import torch.nn.functional as F
from torch.autograd import Function

from fast.depthwise import depthwise, depthwise_backward, side_by_side
from fast.pixels import Interleave, redilate
from fast.pointwise import pointwise, pointwise_backward

EPS, MOMENTUM = 1e-5, 0.1  # those of nn.BatchNorm2d
aten = torch.ops.aten


class Stack(Function):
    """Weights (C, C', k, k), small k first -> per group of branches one (nC, C', K, K), K the largest k.

    order: where each channel of the groups comes from; sizes: the groups' channels. A 3x3 kernel is a 5x5 kernel with
    a rim of zeros. One call for a whole cell, because its many small tensors cost more launches than work.
    """

    @staticmethod
    def forward(ctx, *inputs):
        order, sizes, dtype, *weights = inputs
        small = [weight for weight in weights if weight.size(-1) < weights[-1].size(-1)]
        stacked = torch.cat(weights[len(small):])
        if small:
            stacked = torch.cat([F.pad(torch.cat(small), [1] * 4), stacked])
        ctx.order, ctx.C, ctx.n_small, ctx.n = order, weights[0].size(0), len(small), len(weights)
        stacked = stacked if order is None else stacked[order]
        return stacked.to(dtype).split(sizes)

    @staticmethod
    def backward(ctx, *g):
        g = torch.cat(g)
        g = g if ctx.order is None else torch.empty_like(g).index_copy_(0, ctx.order, g)
        small = ()
        if ctx.n_small:
            small, g = g.split([ctx.C * ctx.n_small, ctx.C * (ctx.n - ctx.n_small)])
            small = F.pad(small, [-1] * 4).split(ctx.C)
        return None, None, None, *small, *g.split(ctx.C)


def normalise(y, mean=None, invstd=None, scale=None):
    """Batch norm of y (B, C, H, W) by the batch's moments, or known ones -> the normalised, mean (C), invstd (C)."""
    if mean is None:
        return torch.native_batch_norm(y, scale, None, None, None, True, MOMENTUM, EPS)
    return torch.native_batch_norm(y, scale, None, mean, invstd.pow(-2), False, MOMENTUM, 0.0)[0], mean, invstd


def normalise_backward(g, y, scale, mean, invstd, wants_scale=False):
    """Gradients of `normalise` with regard to y and scale."""
    return aten.native_batch_norm_backward(g, y, scale, None, None, mean, invstd, True, EPS,
                                           [True, wants_scale, False])[:2]


class NormReLUDepthwise(Function):
    """depthwise(relu(norm(pointwise(d)))) of n branches, d (B, nC, H, W) -> (B, nC, H, W), mean (nC), invstd (nC).

    mean, invstd: None, or those known from a first pass: then a checkpointed cell's memory peaks here, so that the
    pointwise output is not kept.
    """

    @staticmethod
    def forward(ctx, d, weight, kernel, mean, invstd):
        wants_weight = ctx.needs_input_grad[1]
        keep_y = mean is None or not wants_weight
        y = pointwise(d, weight)
        z, mean, invstd = normalise(y, mean, invstd)
        y = y if keep_y else None  # frees it before the next convolution
        ctx.save_for_backward(d if wants_weight else None, y, weight, kernel, mean, invstd)
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        return depthwise(z.relu_(), kernel), mean, invstd

    @staticmethod
    def backward(ctx, g, *_):
        d, y, weight, kernel, mean, invstd = ctx.saved_tensors
        wants_weight = ctx.needs_input_grad[1]
        y = pointwise(d, weight) if y is None else y
        z = normalise(y, mean, invstd)[0].relu_()
        g, g_kernel = depthwise_backward(g, z, kernel, wants_kernel=ctx.needs_input_grad[2])
        aten.threshold_backward.grad_input(g, z, 0, grad_input=g)  # in place: the peak of memory is here
        del z
        g, _ = normalise_backward(g, y, None, mean, invstd)
        g_d, g_weight = pointwise_backward(g, d if wants_weight else y, weight, wants_weight)
        return g_d, g_weight, g_kernel, None, None


class WeightedNorm(Function):
    """sum_o w_o * norm(pointwise_o(d_o)) of n branches, d (B, nC, H, W) -> (B, C, H, W), mean (nC), invstd (nC).

    `scale` (nC) holds each w_o C times: the norm has no affine parameters, so its scale can be the mixing weight.
    B: the images; a d of more is interleaved, see `undilate`, and the sum is not.
    mean, invstd: None, or those known from a first pass; then `Node` knows the sum, and here it is left out.
    """

    @staticmethod
    def forward(ctx, d, scale, weight, B, mean, invstd):
        C = weight.size(1)
        wants_weight = ctx.needs_input_grad[2]
        y = pointwise(d, weight) if mean is None or not wants_weight else None
        if mean is None:
            z, mean, invstd = normalise(y, scale=scale)
            mixed, *others = z.split(C, dim=1) if z.size(1) > C else [z]
            for i, other in enumerate(others):
                mixed = mixed + other if i == 0 else mixed.add_(other)
            mixed = redilate(mixed, B)
        else:
            zoom = 1 if d.size(0) == B else 2
            mixed = d.new_empty(()).expand(B, C, zoom * d.size(2), zoom * d.size(3))
        ctx.save_for_backward(d if wants_weight else y, scale, weight, mean, invstd)
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        return mixed, mean, invstd

    @staticmethod
    def backward(ctx, g, *_):
        d, scale, weight, mean, invstd = ctx.saved_tensors
        n, wants_weight = weight.size(0) // weight.size(1), ctx.needs_input_grad[2]
        y = pointwise(d, weight) if wants_weight else d  # else y was kept; of d only the shape counts
        g = g if g.size(0) == d.size(0) else Interleave.apply(g)
        g, g_scale = normalise_backward(side_by_side([g] * n), y, scale, mean, invstd, ctx.needs_input_grad[1])
        g_d, g_weight = pointwise_backward(g, d, weight, wants_weight)
        return g_d, g_scale, g_weight, None, None, None


class PointwiseNorm(Function):
    """norm(pointwise(x)) with affine parameters: (B, C_in, H, W) -> (B, C_out, H, W). Moves the running statistics."""

    @staticmethod
    def forward(ctx, x, weight, scale, shift, running_mean, running_var):
        y = pointwise(x, weight)
        z, mean, invstd = torch.native_batch_norm(y, scale, shift, running_mean, running_var, True, MOMENTUM, EPS)
        narrows = weight.size(0) < weight.size(1)  # small to keep, much work to repeat
        ctx.save_for_backward(x, y if narrows else None, weight, scale, mean, invstd)
        return z

    @staticmethod
    def backward(ctx, g):
        x, y, weight, scale, mean, invstd = ctx.saved_tensors
        y = pointwise(x, weight) if y is None else y
        g, g_scale, g_shift = aten.native_batch_norm_backward(g, y, scale, None, None, mean, invstd, True, EPS,
                                                              [True, True, True])
        g_x, g_weight = pointwise_backward(g, x, weight)
        return g_x, g_weight, g_scale, g_shift, None, None


class PoolNorm(Function):
    """norm(3x3 pool(x)), x (B, C, H, W) -> (B, C, H/stride, W/stride), mean (C), invstd (C).

    mean, invstd: None, or those known from a first pass. Only then is the pool kept, whose 8-byte indices weigh a lot;
    else x, to pool it again.
    """

    @staticmethod
    def pool(x, kind, stride):
        if kind == "max":
            return aten.max_pool2d_with_indices(x, [3, 3], [stride] * 2, [1, 1])
        return aten.avg_pool2d(x, [3, 3], [stride] * 2, [1, 1], False, False), None

    @staticmethod
    def forward(ctx, x, kind, stride, mean, invstd):
        y, indices = PoolNorm.pool(x, kind, stride)
        kept = (x, None, None) if mean is None else (None, y, indices)
        z, mean, invstd = normalise(y, mean, invstd)
        ctx.save_for_backward(*kept, mean, invstd)
        ctx.kind, ctx.stride, ctx.memory = kind, stride, (x.shape, x.stride())
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        return z, mean, invstd

    @staticmethod
    def backward(ctx, g, *_):
        x, y, indices, mean, invstd = ctx.saved_tensors
        if y is None:
            y, indices = PoolNorm.pool(x, ctx.kind, ctx.stride)
        else:
            x = y.new_empty_strided(*ctx.memory)  # only its shape counts then
        g, _ = normalise_backward(g, y, None, mean, invstd)
        window = [3, 3], [ctx.stride] * 2, [1, 1]
        if ctx.kind == "max":
            return aten.max_pool2d_with_indices_backward(g, x, *window, [1, 1], False, indices), *[None] * 4
        return aten.avg_pool2d_backward(g, x, *window, False, False, None), *[None] * 4


class WeightedSum(Function):
    """w (m), m maps y (B, C, H, W) -> sum_o w_o * y_o, (B, C, H, W); left out if `Node` knows it from a first pass."""

    @staticmethod
    def forward(ctx, *inputs):
        w, known, *maps = inputs
        ctx.save_for_backward(w, *(maps if ctx.needs_input_grad[0] else ()))
        if known:
            return maps[0].new_empty(()).expand(maps[0].shape)
        (scalar, *scalars), (y, *others) = w.unbind(), maps
        total = y * scalar
        for y, scalar in zip(others, scalars):
            total.addcmul_(y, scalar)
        return total

    @staticmethod
    def backward(ctx, g):
        w, *maps = ctx.saved_tensors
        g_w = torch.stack([(g * y).sum() for y in maps]) if maps else None
        return g_w, None, *torch._foreach_mul([g] * len(w), w.unbind())


class Node(Function):
    """A node, the sum of its parts, and its ReLU: (B, C, H, W) each. known: None, or the node of a first pass."""

    @staticmethod
    def forward(ctx, *inputs):
        known, *parts = inputs
        if known is None:
            node = parts[0] + parts[1] if len(parts) > 1 else parts[0].clone()
            for part in parts[2:]:
                node.add_(part)
        else:
            node = known.clone()
        relu = node.clamp(min=0)
        ctx.save_for_backward(relu)
        ctx.n = len(parts)
        ctx.set_materialize_grads(False)
        return node, relu

    @staticmethod
    def backward(ctx, g, g_relu):
        relu, = ctx.saved_tensors
        if g_relu is not None:  # None: no branch leaves the node
            g_relu = aten.threshold_backward(g_relu, relu, 0)
            g = g_relu if g is None else g_relu.add_(g)
        return None, *[g] * ctx.n
