"""The networks' convolutions and norms as autograd Functions that keep little for the backward pass.

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
from torch import Tensor, nn
from torch.autograd import Function

EPS, MOMENTUM = 1e-5, 0.1  # those of nn.BatchNorm2d
aten = torch.ops.aten


def fast_layout(images: Tensor) -> Tensor:
    """The images (B, 3, H, W) in the memory order that a network runs best in, which its layers then keep."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def average_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C). Not `x.mean`: its gradient would leave channels-last memory, and slow a cell."""
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)


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
        small, large = g.split([ctx.C * ctx.n_small, ctx.C * (ctx.n - ctx.n_small)])
        small = F.pad(small, [-1] * 4).split(ctx.C) if ctx.n_small else ()
        return None, None, None, *small, *large.split(ctx.C)


def side_by_side(maps) -> Tensor:
    """n maps (B, C, H, W) -> (B, nC, H, W)."""
    return torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]


def depthwise(x: Tensor, kernel: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    return F.conv2d(x, kernel, None, stride, dilation * (kernel.size(-1) // 2), dilation, groups=x.size(1))


def conv_backward(g, x, weight, stride=1, padding=(0, 0), dilation=1, groups=1, mask=(True, True)):
    """Gradients with regard to x and weight, where `mask` asks for them."""
    return aten.convolution_backward(g, x, weight, None, [stride] * 2, padding, [dilation] * 2, False, [0, 0], groups,
                                     [*mask, False])[:2]


def depthwise_backward(g, x, kernel, stride=1, dilation=1, wants_kernel=True):
    """Gradients of `depthwise` with regard to x and kernel."""
    k, dense = kernel.size(-1), stride == dilation == 1
    by_columns = wants_kernel and k == 5 and x.size(3) % 2 == 0
    if x.device.type == "cpu" and dense and (by_columns or not wants_kernel):
        # The same convolution, its kernel turned around, is faster than oneDNN's gradient.
        return depthwise(g, kernel.flip(2, 3)), kernel_gradient_5x5(g, x, kernel) if wants_kernel else None
    padding = [dilation * (k // 2)] * 2
    return conv_backward(g, x, kernel, stride, padding, dilation, x.size(1), (True, wants_kernel))


def kernel_gradient_5x5(g: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """The same gradient from kernels of width 3, for which oneDNN is several times faster: (C, 1, 5, 5).

    Width 3 on the maps gives columns 1, 2, 3. In channels-last memory two neighbouring pixels are one pixel of 2C
    channels, whose neighbours are two columns away: width 3 on that view gives columns 0, 2, 4, of even and odd pixels.
    """
    B, C, H, W = x.shape
    rows = 2
    if H < 5:  # fast only on maps as tall as the kernel
        x, rows = F.pad(x, (0, 0, 2, 2)), 0
    g, x = (m.contiguous(memory_format=torch.channels_last) for m in (g, x))
    pairs = (m.as_strided((B, 2 * C, m.size(2), W // 2), (m.size(2) * W * C, 1, W * C, 2 * C)) for m in (g, x))
    narrow, mask = kernel.new_empty(2 * C, 1, 5, 3), (False, True)  # its shape is all that counts here
    _, near = conv_backward(g, x, narrow[:C], 1, [rows, 1], 1, C, mask)
    _, far = conv_backward(*pairs, narrow, 1, [rows, 1], 1, 2 * C, mask)
    one, two, three = near.unbind(-1)
    zero, _, four = far.view(2, C, 1, 5, 3).sum(0).unbind(-1)
    return torch.stack([zero, one, two, three, four], dim=-1)


class Interleave(Function):
    """(B, C, H, W) -> (4B, C, H/2, W/2): the even and odd rows and columns as four images."""

    @staticmethod
    def forward(ctx, x):
        B, C, H, W = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        x = x.as_strided((2, 2, B, H // 2, W // 2, C), (W * C, C, H * W * C, 2 * W * C, 2 * C, 1)).contiguous()
        return x.as_strided((4 * B, C, H // 2, W // 2), (H * W * C // 4, 1, W * C // 2, C))

    @staticmethod
    def backward(ctx, g):
        return Deinterleave.forward(ctx, g)


class Deinterleave(Function):
    """(4B, C, H/2, W/2) -> (B, C, H, W): the inverse."""

    @staticmethod
    def forward(ctx, x):
        B, C, H, W = x.size(0) // 4, x.size(1), 2 * x.size(2), 2 * x.size(3)
        x = x.contiguous(memory_format=torch.channels_last)
        size = H * W * C // 4  # of one of the four images
        x = x.as_strided((B, H // 2, 2, W // 2, 2, C), (size, W * C // 2, 2 * B * size, C, B * size, 1)).contiguous()
        return x.as_strided((B, C, H, W), (H * W * C, 1, W * C, C))

    @staticmethod
    def backward(ctx, g):
        return Interleave.forward(ctx, g)


class EverySecond(Function):
    """x (B, C, H, W) from each of the pixels (i, i) in `starts` on, every second: (B, C, H/2, W/2) each.

    As plain slices, but autograd's gradient of a slice leaves channels-last memory, which slows what comes after it.
    """

    @staticmethod
    def forward(ctx, x, starts):
        ctx.starts, ctx.memory = starts, (x.shape, x.stride())
        return tuple(x[:, :, i::2, i::2].clone() for i in starts)

    @staticmethod
    def backward(ctx, *gs):
        g_x = gs[0].new_empty_strided(*ctx.memory).zero_()
        for i, g in zip(ctx.starts, gs):
            g_x[:, :, i::2, i::2] = g
        return g_x, None


def undilate(x: Tensor, stride: int) -> tuple[Tensor, int, int]:
    """x (B, C, H, W), stride and dilation under which a kernel of dilation 2 and that stride gives the same.

    A dilation of 2 is dense on every second pixel: with stride 2 on those of even row and column, with stride 1 on
    each of the four interleaved images (even sizes only). On the CPU the dense gradients are several times faster.
    """
    if x.device.type == "cpu" and stride == 2:
        return EverySecond.apply(x, (0,))[0], 1, 1
    if x.device.type == "cpu" and x.size(2) % 2 == x.size(3) % 2 == 0:
        return Interleave.apply(x), 1, 1
    return x, stride, 2


def redilate(y: Tensor, B: int) -> Tensor:
    """The inverse of `undilate` on a result of B images: (B or 4B, C, H', W') -> (B, C, H, W)."""
    return y if y.size(0) == B else Deinterleave.apply(y)


class Depthwise(Function):
    """n kernels, each on one of the states (B, C, H, W), already past their ReLU -> (B, nC, H/stride, W/stride).

    which: the state of each kernel; every state is given once, as torch.compile wants it.
    """

    @staticmethod
    def forward(ctx, *inputs):
        kernel, stride, dilation, which, *states = inputs
        x = side_by_side([states[i] for i in which])  # (B, nC, H, W)
        ctx.save_for_backward(kernel, *states)
        ctx.stride, ctx.dilation, ctx.which = stride, dilation, which
        return depthwise(x, kernel, stride, dilation)

    @staticmethod
    def backward(ctx, g):
        kernel, *states = ctx.saved_tensors
        x = side_by_side([states[i] for i in ctx.which])
        g_x, g_kernel = depthwise_backward(g, x, kernel, ctx.stride, ctx.dilation, ctx.needs_input_grad[0])
        g_states = [None] * len(states)
        for i, g in zip(ctx.which, g_x.split(states[0].size(1), dim=1)):
            g_states[i] = g if g_states[i] is None else g_states[i] + g
        return g_kernel, None, None, None, *g_states


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
        y = F.conv2d(d, weight, groups=weight.size(0) // weight.size(1))
        z, mean, invstd = normalise(y, mean, invstd)
        y = y if keep_y else None  # frees it before the next convolution
        ctx.save_for_backward(d if wants_weight else None, y, weight, kernel, mean, invstd)
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        return depthwise(z.relu_(), kernel), mean, invstd

    @staticmethod
    def backward(ctx, g, *_):
        d, y, weight, kernel, mean, invstd = ctx.saved_tensors
        n, wants_weight = weight.size(0) // weight.size(1), ctx.needs_input_grad[1]
        y = F.conv2d(d, weight, groups=n) if y is None else y
        z = normalise(y, mean, invstd)[0].relu_()
        g, g_kernel = depthwise_backward(g, z, kernel, wants_kernel=ctx.needs_input_grad[2])
        aten.threshold_backward.grad_input(g, z, 0, grad_input=g)  # in place: the peak of memory is here
        del z
        g, _ = normalise_backward(g, y, None, mean, invstd)
        d = d if wants_weight else y  # only its shape counts then
        g_d, g_weight = conv_backward(g, d, weight, groups=n, mask=(True, wants_weight))
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
        n = weight.size(0) // C
        wants_weight = ctx.needs_input_grad[2]
        y = F.conv2d(d, weight, groups=n) if mean is None or not wants_weight else None
        if mean is None:
            z, mean, invstd = normalise(y, scale=scale)
            mixed, *others = z.split(C, dim=1)
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
        y = F.conv2d(d, weight, groups=n) if wants_weight else d  # else y was kept; of d only the shape counts
        g = g if g.size(0) == d.size(0) else Interleave.apply(g)
        g, g_scale = normalise_backward(side_by_side([g] * n), y, scale, mean, invstd, ctx.needs_input_grad[1])
        g_d, g_weight = conv_backward(g, d, weight, groups=n, mask=(True, wants_weight))
        return g_d, g_scale, g_weight, None, None, None


class PointwiseNorm(Function):
    """norm(pointwise(x)) with affine parameters: (B, C_in, H, W) -> (B, C_out, H, W). Moves the running statistics."""

    @staticmethod
    def forward(ctx, x, weight, scale, shift, running_mean, running_var):
        y = F.conv2d(x, weight)
        z, mean, invstd = torch.native_batch_norm(y, scale, shift, running_mean, running_var, True, MOMENTUM, EPS)
        narrows = weight.size(0) < weight.size(1)  # small to keep, much work to repeat
        ctx.save_for_backward(x, y if narrows else None, weight, scale, mean, invstd)
        return z

    @staticmethod
    def backward(ctx, g):
        x, y, weight, scale, mean, invstd = ctx.saved_tensors
        y = F.conv2d(x, weight) if y is None else y
        g, g_scale, g_shift = aten.native_batch_norm_backward(g, y, scale, None, None, mean, invstd, True, EPS,
                                                              [True, True, True])
        g_x, g_weight = conv_backward(g, x, weight)
        return g_x, g_weight, g_scale, g_shift, None, None


def pointwise_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """norm(conv(x)) in training, for a 1x1 convolution."""
    if not norm.training:  # its running statistics are frozen
        return norm(conv(x))
    norm.num_batches_tracked.add_(1)
    return PointwiseNorm.apply(x, conv.weight.to(x.dtype), norm.weight, norm.bias, norm.running_mean, norm.running_var)


def depthwise_of(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x) in training, for a depthwise convolution; if it is dilated, up to `redilate`."""
    stride, dilation = conv.stride[0], conv.dilation[0]
    if dilation == 2:
        x, stride, dilation = undilate(x, stride)
    return Depthwise.apply(conv.weight.to(x.dtype), stride, dilation, (0,), x)


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
        return g_w, None, *(g * scalar for scalar in w.unbind())


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
