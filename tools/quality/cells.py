"""cells.py - what is measured: every policy of the engine, and how each is told a budget.

The budget is the mean share of audio and video tokens alive over the layers, counted before step 0 (docs/omnidrop.md 3). A
policy that the engine lists and VARIANTS does not know is named by the tool and in the table: add a line here.
"""
import itertools
import json

BUDGETS = (1.0, 0.5, 0.4, 0.3, 0.2, 0.1)
T_MID = tuple(x / 100 for x in range(50, -1, -5))      # of a schedule: the latest middle that can reach the target
P_FINAL_MAX = 0.9


class Variant:
    """A policy with some parameters held fixed.

    how: "share"     one parameter (or several) takes the budget itself: `share` names them
         "schedule"  retention, with the t_mid that can_reach() finds
         "formula"   formula(target, layers) gives the parameters, or None where the policy cannot keep so few
         "own"       no budget: `settings` lists (name, parameters) as they are
    """

    def __init__(self, label, policy, how, share=("retention",), fixed=None, settings=(), formula=None, help=""):
        self.label, self.policy, self.how, self.share = label, policy, how, share
        self.fixed, self.settings, self.formula, self.help = fixed or {}, settings, formula, help


def solved(mean, target):
    """x in 0..1 with mean(x) = target, mean rising; None where mean(0) is above it."""
    low, high = 0.0, 1.0
    if mean(low) > target:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < target else (low, middle)
    return round(high, 4)


def once(first):
    """One drop before layer `first`: the share that stays from there on."""
    def formula(target, layers):
        share = (layers * target - first) / (layers - first)
        return {"K": first, "R": round(share, 4)} if share >= 0 else None
    return formula


def stages(target, layers):
    """The share that stays at each of three stages, at a quarter, half and three quarters of the layers."""
    at = [0] + [layers * i // 4 for i in (1, 2, 3)] + [layers]
    r = solved(lambda r: sum((b - a) * r ** i for i, (a, b) in enumerate(zip(at, at[1:]))) / layers, target)
    return None if r is None else {"R": r}


def falling(*names):
    """Shares that fall by the same factor from layer to layer, from all at the first."""
    def formula(target, layers):
        r = solved(lambda r: sum(r ** i for i in range(layers)) / layers, target)
        return None if r is None else {n: [round(r ** i, 4) for i in range(layers)] for n in names}
    return formula


def removed(*names):
    return lambda target, layers: dict.fromkeys(names, round(1 - target, 4))


def leaves(target, layers):
    return {"at": round(target * layers)}


def seats(target, layers):
    """The paper leaves before layer 24 of 28."""
    return {"target_v": target, "target_a": target, "exit_at": round(24 * layers / 28)}


VARIANTS = [
    Variant("none", "none", "own", settings=[("", {})], help="every token"),
    Variant("random", "random", "share", help="a random choice before the decoder, another for each clip"),
    Variant("uniform", "uniform", "share", help="evenly spaced before the decoder"),
    Variant("saliency", "saliency", "share", share=("audio", "vision"), help="what the towers look at most, before the decoder"),
    Variant("random-layers", "random-layers", "schedule", fixed={"kappa": 0.2}, help="omnidrop's counts at every layer, a random choice"),
    Variant("omnidrop", "omnidrop", "schedule", fixed={"kappa": 0.2}, help="step 0, then layer by layer, guided by the question"),
    Variant("omnidrop, kappa 0.5", "omnidrop", "schedule", fixed={"kappa": 0.5}, help="step 0 leaves half of a reduced grid step"),
    Variant("random-layers, no step 0", "random-layers", "schedule", fixed={"step0": False}, help="plp's counts, a random choice"),
    Variant("plp", "omnidrop", "schedule", fixed={"step0": False}, help="omnidrop without step 0: layer by layer alone"),
    Variant("step0", "step0", "own", settings=[("as printed", {"kappa": 0.2})], help="omnidrop's step 0 alone"),
    Variant("ttm", "ttm", "own", settings=[(f"kappa {k:g}", {"kappa": k}) for k in (0.5, 0.2, 0.0)],
            help="merging over time before the decoder; sound stays whole"),
    Variant("omnisift-lite", "omnisift-lite", "formula", formula=removed("rho_v", "rho_a")),
    Variant("omnizip", "omnizip", "formula", formula=removed("rho_v", "rho_a"), help="anchors come on top"),
    Variant("dash", "dash", "formula", formula=removed("rho_v", "rho_a"), help="anchors come on top"),
    Variant("omnifocus", "omnifocus", "share", share=("R",)),
    Variant("trim-lc", "trim-lc", "share", share=("R",), help="pictures; sound stays whole"),
    Variant("vtc-cls", "vtc-cls", "share", share=("retain",), help="pictures; sound stays whole"),
    Variant("prumerge", "prumerge", "share", share=("cap",), help="pictures; sound stays whole"),
    Variant("fastv", "fastv", "formula", formula=once(2)),
    Variant("pyramiddrop", "pyramiddrop", "formula", formula=stages),
    Variant("table", "table", "formula", formula=falling("rates"), help="shares that fall by one factor from layer to layer"),
    Variant("omnifit", "omnifit", "formula", formula=falling("rates_a", "rates_v"), help="shares that fall by one factor from layer to layer"),
    Variant("seats", "seats", "formula", formula=seats),
    Variant("exit", "exit", "formula", formula=leaves, help="whole layers: every token, then none"),
    Variant("knee", "knee", "own", settings=[("saliency", {}), ("mean", {"signal": "mean"})], help="pictures; sound stays whole"),
    Variant("aim", "aim", "own", settings=[(f"{n} rounds", {"rounds": n}) for n in (0, 1, 2)]),
]
# Not in the study: omnisift's selector is of no public checkpoint, so the engine refuses it.
LEFT_OUT = {"omnisift"}

# The paper's open question, every choice of the one with every choice of the other. The diversity score begins at the schedule's
# middle, as in the paper's settings: with the engine's default, half of the layers, an early middle would have dropped most before it.
STUDY_OF, STUDY_BUDGETS = ("omnidrop", "plp"), (0.3, 0.2)
STUDY = {"tds": ("off", "printed", "max"), "query": ("text", "after", "last")}


class Cell:
    """One setting that every question is put to. key: what its answers are stored under; study: the label it is a variation of, or ""."""

    def __init__(self, label, target, policy, options, note="", study=""):
        self.label, self.target, self.policy, self.options, self.note, self.study = label, target, policy, dict(options), note, study

    @property
    def key(self):
        return json.dumps([self.policy, self.options], sort_keys=True)

    @property
    def name(self):
        return self.label if self.target is None else f"{self.label} {100 * self.target:.0f} %"


def parameters_of(policies):
    """{policy: {parameter: description}} of `omnidrop inspect policies --json`."""
    return {p["name"]: {x["name"]: x for x in p["parameters"]} for p in policies}


def plan(known, can_reach, n_layers, budgets=BUDGETS, labels=None, study=True):
    """Cells, (label, target, reason) of those out of reach, and messages about what else is not measured and why.

    known: parameters_of(); can_reach(policy, options): None, or the engine's reason against it. What STUDY varies is always written
    out, so that a cell means the same after a default has changed.
    """
    cells, missed, messages = [], [], []
    for name in known:
        if name not in {v.policy for v in VARIANTS} | LEFT_OUT:
            messages.append(f"policy {name}: tools/quality/cells.py has no entry for it: it is not measured")
    schedules = {}

    def scheduled(v, target):
        """Options with the latest t_mid that reaches the target, or None and the reason."""
        at = (json.dumps(v.fixed, sort_keys=True), target)
        if at not in schedules:
            for t in T_MID:
                why = can_reach(v.policy, {**v.fixed, "retention": target, "t_mid": t})
                schedules[at] = (t if why is None else None, why)
                if why is None:
                    break
        t, why = schedules[at]
        words = {w: known[v.policy][w]["default"] for w in STUDY if w in known[v.policy]}
        return (None, why) if t is None else ({**v.fixed, "retention": target, "t_mid": t, **words}, None)

    for v in VARIANTS:
        if labels and v.label not in labels:
            continue
        if v.policy not in known:
            messages.append(f"{v.label}: this engine has no policy {v.policy}: not measured")
            continue
        if v.how == "own":
            for name, options in v.settings:
                cells.append(Cell(f"{v.label} {name}".strip(), 1.0 if v.policy == "none" else None, v.policy, options))
            continue
        for target in budgets:
            if v.how == "share":
                cells.append(Cell(v.label, target, v.policy, {**v.fixed, **dict.fromkeys(v.share, target)}))
                continue
            if v.how == "formula":
                options = v.formula(target, n_layers) if target < 1 else None
                why = f"keeps more than {100 * target:.0f} % with the share 0" if options is None else can_reach(v.policy, options)
                if why is None:
                    cells.append(Cell(v.label, target, v.policy, {**v.fixed, **options}))
                elif target < 1:
                    missed.append((v.label, target, why))
                continue
            options, why = scheduled(v, target)
            if options is None:
                missed.append((v.label, target, why))
            else:
                cells.append(Cell(v.label, target, v.policy, options, f"t_mid {options['t_mid']:g}"))
    for v in VARIANTS if study else ():
        if v.label not in STUDY_OF or v.policy not in known or labels and v.label not in labels:
            continue
        lacks = [word for word in STUDY if word not in known[v.policy]]
        if lacks:
            messages.append(f"{v.label}: this engine's {v.policy} has no parameter {' and '.join(lacks)}: the study of them is not run")
            continue
        for target in STUDY_BUDGETS:
            options, _ = scheduled(v, target)
            for words in itertools.product(*STUDY.values()) if options else ():
                mine = {**options, **dict(zip(STUDY, words)), "tds_start_layer": round(options["t_mid"] * n_layers)}
                default = all(mine[w] == options[w] for w in STUDY)
                label = ", ".join(f"{w} {x}" for w, x in zip(STUDY, words))
                cells.append(Cell(f"{v.label}, {label}", target, v.policy, mine, "default" if default else "", v.label))
    return cells, missed, messages
