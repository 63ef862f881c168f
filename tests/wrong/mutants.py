"""The faults that can be generated from a module's syntax tree, and the tests of each module."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from copy import copy

Change = Callable[[ast.Module], None]  # changes a copy of the tree that it was made from, in place
Mutation = tuple[int, str, Change]  # line, "before -> after", the change

COMPARISONS: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
}
WORDS = {  # a choice -> another that the same place accepts
    "sum": "product",
    "product": "sum",
    "cosine": "unit_l2",
    "flattened": "cosine",
    "l2": "cosine",
    "scipy": "torch",
    "torch": "scipy",
    "mean": "max",
    "bilinear": "nearest",
    "fan_out": "fan_in",
    "relu": "linear",
    "student": "teacher",
    "teacher": "student",
}
# calls that are left out: f(x, ...) and x.f(...) become x
ELEMENTWISE = ("relu", "detach", "square", "sqrt", "abs", "clamp", "clamp_min", "sigmoid", "float", "double", "clone")
REORDERING = ("flatten", "sort", "reversed", "contiguous", "channels_last")
OF_IMAGES = ("grey_opening", "gaussian_blur", "stretched", "resized", "normalise", "distorted", "norm_clamp")
UNWRAPPED = (*ELEMENTWISE, *REORDERING, *OF_IMAGES)
LAYERS = ("ReLU", "BatchNorm2d")  # nn.ReLU(...) becomes nn.Identity()
CONTEXTS = ("no_grad", "autocast", "seeded", "enable_grad", "inference_mode", "fork_rng")
KEPT = ("isinstance", "getattr", "setattr", "hasattr", "zip", "super", "range", "replace")  # arguments not exchanged


def called(node: ast.AST) -> str:
    """The last part of what a call calls; "" for anything else."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def walk(node: ast.AST, path: tuple[tuple[str, int | None], ...] = ()) -> Iterator[tuple[ast.AST, tuple]]:  # type: ignore[type-arg]
    """Every node and the path to it, but for annotations, docstrings and what a chosen preset holds."""
    yield node, path
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if isinstance(child, ast.AST) and not skipped(node, name, child):
                yield from walk(child, (*path, (name, index if isinstance(value, list) else None)))


def skipped(parent: ast.AST, name: str, child: ast.AST) -> bool:
    """Docstrings, how a dataclass is made, and quick and standard presets: recipes of no source, but chosen."""
    if (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)) or called(child) == "dataclass":
        return True
    if isinstance(child, ast.Assign | ast.AnnAssign):
        target = child.targets[0] if isinstance(child, ast.Assign) else child.target
        return getattr(target, "id", "") in ("QUICK", "STANDARD", "__all__")
    if isinstance(parent, ast.Dict) and name == "values":
        key = parent.keys[parent.values.index(child)]  # type: ignore[arg-type]
        return isinstance(key, ast.Constant) and key.value in ("quick", "standard")
    return isinstance(child, ast.Raise | ast.JoinedStr)


def at(tree: ast.AST, path: tuple[tuple[str, int | None], ...]) -> ast.AST:
    """The node at `path`."""
    for name, index in path:
        value = getattr(tree, name)
        tree = value if index is None else value[index]
    return tree


def put(tree: ast.AST, path: tuple[tuple[str, int | None], ...], node: ast.AST) -> None:
    """Replace the node at `path`."""
    name, index = path[-1]
    parent = at(tree, path[:-1])
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


def mutations(tree: ast.Module) -> Iterator[Mutation]:
    """Every mutation of `tree`, in the order of its nodes."""
    for node, path in walk(tree):
        for after in variants(node):
            line = getattr(node, "lineno", 0)
            what = f"{short(node)} -> {short(after)}"
            yield line, what, lambda tree, path=path, after=after: put(tree, path, after)  # type: ignore[misc]


def short(node: ast.AST) -> str:
    """One line of source."""
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= 90 else f"{text[:60]} ... {text[-25:]}"


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What `node` may become, each with one fault."""
    for kind in (constants, operators, branches, arguments, calls, statements):
        for made in kind(node):
            yield ast.copy_location(made, node)


def constants(node: ast.AST) -> Iterator[ast.AST]:
    """Numbers a little or much larger, True and False exchanged, another of the known words."""
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 0.5)
    elif value in WORDS:
        yield ast.Constant(WORDS[value])


def operators(node: ast.AST) -> Iterator[ast.AST]:
    """Comparisons, arithmetic and logic turned into their neighbours."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand


def branches(node: ast.AST) -> Iterator[ast.AST]:
    """Conditions turned round."""
    if isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If) and getattr(node.test, "id", "") != "TYPE_CHECKING":
        yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)


def arguments(node: ast.AST) -> Iterator[ast.AST]:
    """The first two arguments exchanged; each keyword left out."""
    if not isinstance(node, ast.Call) or called(node) in KEPT:
        return
    plain = not any(isinstance(argument, ast.Starred) for argument in node.args)
    if len(node.args) >= 2 and plain and ast.dump(node.args[0]) != ast.dump(node.args[1]):
        yield ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)
    for index, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "name", "title", "paper", "build", "variants", "presets"):
            yield ast.Call(node.func, node.args, node.keywords[:index] + node.keywords[index + 1 :])


def calls(node: ast.AST) -> Iterator[ast.AST]:
    """Calls that only change a value left out, layers that only change it replaced by none."""
    name = called(node)
    if not isinstance(node, ast.Call):
        return
    if name in LAYERS:
        yield ast.parse("nn.Identity()", mode="eval").body
    elif name in UNWRAPPED and isinstance(node.func, ast.Attribute) and not owner_is_module(node.func):
        yield node.func.value
    elif name in UNWRAPPED and node.args:
        yield node.args[0]


def owner_is_module(function: ast.Attribute) -> bool:
    """torch.relu, F.relu: the value is the first argument, not what stands before the dot."""
    return isinstance(function.value, ast.Name) and function.value.id in ("torch", "F", "nn", "self", "np")


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Statements and contexts left out."""
    kept = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple)  # NameError, otherwise
    if isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.Continue | ast.Break) and not kept:
        yield ast.Pass()
    elif isinstance(node, ast.With):
        for index, item in enumerate(node.items):
            if called(item.context_expr) in CONTEXTS:
                rest = node.items[:index] + node.items[index + 1 :]
                always = ast.If(ast.Constant(True), node.body, [])
                yield changed(node, items=rest) if rest else always
    elif isinstance(node, ast.FunctionDef):
        for index, decorator in enumerate(node.decorator_list):
            if called(decorator) in CONTEXTS:
                yield changed(node, decorator_list=node.decorator_list[:index] + node.decorator_list[index + 1 :])


def changed(node: ast.AST, **fields: object) -> ast.AST:
    """A copy of `node` with other `fields`."""
    made = copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


HERE = "tests/methods/"


def files(*names: str) -> tuple[str, ...]:
    return tuple(f"{HERE}test_{name}.py" for name in names)


# module, or the beginning of its name -> the tests that have to notice its faults, quick ones first
TESTS: Mapping[str, tuple[str, ...]] = {
    "": files("every_method"),
    "protocol": files("protocol", "words", "every_method"),
    "resizing": files("pixel_mean", "distillation"),
    "training.words": files("words"),
    "training.settings": files("recipes", "protocol", "words", "distillation"),
    "training.teacher": files("frozen_features", "distillation"),
    "training.watching": ("tests/harness/test_audit.py",),
    "training.stable_adamw": files("dinomaly"),
    "training.ahead": files("drawn_ahead"),
    "training.drawer": files("drawn_ahead"),
    "training.course": files("distillation", "drawn_ahead"),
    "training": files("recipes", "distillation"),
    "distillation": files("initial_weights", "golden_networks", "distillation"),
    "stfpm": files("recipes", "words", "stfpm"),
    "rd4ad": files("recipes", "words", "rd4ad"),
    "dinomaly": files("recipes", "protocol", "words", "dinomaly"),
    "rdpp": files("recipes", "protocol", "words", "rdpp", "golden_networks"),
    "stad": files("recipes", "protocol", "words", "stad", "golden_networks"),
    "efficientad": files("recipes", "protocol", "words", "efficientad", "golden_networks"),
    "efficientad.drawing": files("efficientad", "drawn_ahead"),
    "drawn_images": files("efficientad"),
    "grid_sampling": files("determinism", "fractalad_head"),
    "last_layer": files("efficientad"),
    "patch_network": files("stad", "golden_networks"),
    "crops": files("crops", "stad", "drawn_ahead"),
    "least_squares": files("least_squares", "stad"),
    "destseg": files("recipes", "protocol", "words", "destseg", "stages"),
    "ast": files("recipes", "protocol", "words", "ast", "stages"),
    "training.stages": files("stages"),
    "training.parting": files("parting"),
    "draws": files("fractalad_anomalies", "perlin_noise", "destseg"),
    "perlin_noise": files("perlin_noise", "destseg"),
    "drawn_textures": files("perlin_noise", "destseg"),
    "simplex_noise": files("simplex_noise"),
    "reverse": files("words", "rd4ad", "initial_weights", "golden_networks", "folding"),
    "eca_mskdad": files("recipes", "protocol", "words", "eca_mskdad"),
    "dual_student": files("recipes", "words", "initial_weights", "golden_networks", "dual_student"),
    "augmentation": files("augmentation", "eca_mskdad"),
    "checkpoint": files("checkpoint", "frozen_features"),
    "pixel_mean": files("recipes", "pixel_mean", "every_method"),
    "frozen_features": files("frozen_features", "padim", "spade", "patchcore", "words"),
    "padim": files("recipes", "protocol", "padim", "frozen_features", "words"),
    "spade": files("recipes", "protocol", "spade", "frozen_features", "words"),
    "patchcore": files("recipes", "protocol", "patchcore", "frozen_features", "words"),
    "mkd": files("mkd_words", "protocol", "initial_weights", "mkd", "words"),
    "fractalad": files("fractalad_anomalies", "fractalad"),
    "fractalad.settings": files("fractalad_words", "protocol", "words"),
    "fractalad.segmentation": files("fractalad_head", "fractalad"),
    "fractalad.detector": files("fractalad_words", "fractalad_head", "fractalad"),
    "fractalad.objects": files("fractalad_objects"),
    "fractalad.anomaly": files("fractalad_anomalies", "fractalad_objects", "fractalad"),
    "backbones": files("backbones", "initial_weights", "golden_networks"),
    "outside": ("tests/cli/test_outside_methods.py", "tests/harness/test_check_method.py"),
    "backbones.pdn": files("efficientad", "golden_networks"),
    "backbones.folding": files("folding"),
    "backbones.vit": files("vit"),
    "backbones.weights": files("weights"),
    "backbones.names": files("backbones", "weights"),
}

# what a mutant's "before -> after  |  its line" looks like -> why no test can notice it, in any module
HARMLESS: Mapping[str, str] = {
    r"inplace=True\) -> nn\.ReLU\(\)": "memory only, the answer is the same",
    r"strict=True.* -> (?!.*strict=True)": "a guard: the lists are as long as one another",
    r"^channels_last\(.* -> (?!channels_last)|\.contiguous\(.*memory_format": "the layout in memory only",
    r"memory_format=torch\.channels_last.* -> (?!.*memory_format)": "the layout in memory only",
    r"^True -> False( #\d+)?  \|  .*inplace=True\)": "memory only, the answer is the same",
    r"  \|  @dataclass\(": "how a class is declared: for readers and the type checker",
    r"^True -> False( #\d+)?  \|  .*strict=True\)": "a guard: the lists are as long as one another",
    r"(anomaly_map|pixel_discrepancy|distillation_loss)\((\w+), (\w+), .* -> \1\(\3, \2, ": "the distance is symmetric",
    r"\b(max|min)\((.*), (.*)\) -> \1\(\3, \2\)": "the larger or smaller of two, whichever comes first",
    r"persistent=False": "whether a constant is saved with the weights",
}
# (module, its line, "before -> after") -> why no test can notice it
EQUIVALENT: Mapping[tuple[str, str, str], str] = {
    ("augmentation", "happens = chance[:3] < s.probability", "3 -> 4"): "a fourth row is never read",
    (
        "fractalad.anomaly",
        "offsets = np.indices((side, side)).reshape(2, -1) - middle",
        "1 -> 2",
    ): "numpy takes any negative length for the one that follows from the others",
    (
        "fractalad.detector",
        'distillation = distillation_loss(clean_taps, networks.network(clean), kind="cosine")',
        "distillation_loss(clean_taps, networks.network(clean), kind='cosine') -> "
        "distillation_loss(networks.network(clean), clean_taps, kind='cosine')",
    ): "the distance is symmetric",
    (
        "fractalad.objects",
        "background = float(luma[:CORNER, :CORNER].mean())",
        "float(luma[:CORNER, :CORNER].mean()) -> luma[:CORNER, :CORNER].mean()",
    ): "a number of numpy's compares as Python's does",
    (
        "fractalad.ifs",
        "dab = rng.random((3, 3)) < 0.5",
        "rng.random((3, 3)) < 0.5 -> rng.random((3, 3)) <= 0.5",
    ): "one draw in 2^53",
    (
        "fractalad.detector",
        "with torch.no_grad():  # the attention is detached; the pass still moves the batch norms' statistics",
        "with torch.no_grad(): features = weighted(pasted_taps, networks.network(pasted)) -> if True: features = "
        "weighted(pasted_taps, networks.network(pasted))",
    ): "the attention passes no gradient on",
    (
        "checkpoint",
        "own = value.detach().cpu().contiguous()",
        "value.detach() -> value",
    ): "a state_dict is detached",
    (
        "backbones.weights",
        'tensors = torch.load(path, map_location="cpu", weights_only=True)',
        "torch.load(path, map_location='cpu', weights_only=True) -> torch.load(path, map_location='cpu')",
    ): "torch's own default in every release that is taken",
    (
        "training.loop",
        "with torch.no_grad():",
        "with torch.no_grad(): taps = tuple((tap[chosen] for tap in c ... hod.teacher(batch_images) -> "
        "if True: taps = tuple((tap[chosen] for tap in cache)) if met ... hod.teacher(batch_images)",
    ): "the teacher's weights take no gradient",
    (
        "training.loop",
        "def _mean_map(method: Trainable, images: Tensor) -> float:",
        "@torch.no_grad() def _mean_map(method: Trainable, images: Te ... (torch.cat(means).mean())"
        ' -> def _mean_map(method: Trainable, images: Tensor) -> float: " ... (torch.cat(means).mean())',
    ): "scoring keeps no gradients whoever asks",
    ("training.teacher", "sums[k] += tap.double().sum((0, 2, 3))", "tap.double() -> tap"): "digits beyond a float's",
    ("training.loop", "scaler.update()", "scaler.update() -> pass"): "fp16 only: on a CPU its scale rarely changes",
}
