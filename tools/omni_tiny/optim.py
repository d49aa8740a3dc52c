"""optim.py - Muon for the matrices, AdamW for the rest, on a flat dict of parameters."""
import torch


def orthogonal(g, steps=5):
    """Newton-Schulz iteration on a stack of matrices [n, a, b]: nearest semi-orthogonal, roughly."""
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.float().norm(dim=(1, 2), keepdim=True).bfloat16() + 1e-7)
    for _ in range(steps):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Optimizer:
    """step(scale): one update with the learning rates times scale; clears the gradients."""

    def __init__(self, params, muon_lr=0.01, adam_lr=2e-3, decay=0.01):
        self.muon_lr, self.decay = muon_lr, decay
        rest, self.groups, self.mom = [], {}, {}
        for n, p in params.items():
            if p.dim() == 2 and ".layers." in n or p.dim() == 2 and ".blocks." in n:
                self.groups.setdefault(tuple(p.shape), []).append(p)
                self.mom[p] = torch.zeros_like(p)
            else:
                rest.append(p)
        self.adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
        self.adam_lr, self.all = adam_lr, list(params.values())

    def state(self):
        """What load() takes up again: AdamW's state and the momenta, in the order of the parameters."""
        return dict(adam=self.adam.state_dict(), mom=[self.mom[p] for ps in self.groups.values() for p in ps])

    def load(self, state):
        self.adam.load_state_dict(state["adam"])
        for p, m in zip((p for ps in self.groups.values() for p in ps), state["mom"]):
            self.mom[p].copy_(m)

    @torch.no_grad()
    def step(self, scale):
        live = [p for p in self.all if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(live, 1.0)
        for g in self.adam.param_groups:
            g["lr"] = self.adam_lr * scale
        self.adam.step()
        for shape, ps in self.groups.items():
            ps = [p for p in ps if p.grad is not None]
            if not ps:
                continue
            ms = [self.mom[p] for p in ps]
            torch._foreach_mul_(ms, 0.95)
            torch._foreach_add_(ms, [p.grad for p in ps])
            u = orthogonal(torch.stack([p.grad + 0.95 * m for p, m in zip(ps, ms)]))
            lr = self.muon_lr * scale * max(1, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(ps, 1 - self.decay * scale * self.muon_lr)
            torch._foreach_add_(ps, list(u.unbind(0)), alpha=-lr)
        for p in self.all:
            p.grad = None
        return float(norm)
