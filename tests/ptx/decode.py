"""PTX text to the instructions that executor/ runs; what is not known raises, with its text.

A register is a place of 32 lanes (two places for 64 bits), a constant is a register that is filled
when a CTA starts, and so is a special register. Names of operations are those of PTX without what
the machine does not model: caching, vector sizes, `.rn` of sums.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache

import numpy as np

from tests.ptx import build

RECORD = np.dtype(
    [("imm", "<i8")]
    + [
        (name, "<i4")
        for name in (
            "op", "guard", "is_negated", "flags", "dests", "sources", "first", "target", "line",
            "width",
        )
    ],
    align=True,
)  # fmt: skip
#: Flags of an instruction; executor/machine.h has the same numbers.
FTZ, SAT, WIDE, RELAXED, OF_CTA, ALIGNED, MASKED, NON_COHERENT = 1, 2, 4, 8, 16, 64, 128, 256
#: In the order of executor/scheduler.cpp.
SPECIAL = {
    name: number
    for number, names in enumerate(
        (
            "%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y",
            "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid", "%warpid",
            "%cluster_ctarank %cluster_ctaid.x", "%cluster_nctarank %cluster_nctaid.x",
            "%lanemask_lt", "%lanemask_eq",
        )
    )
    for name in names.split()
}  # fmt: skip
SIZE = {f"{kind}{bits}": bits // 8 for kind in "bus" for bits in (8, 16, 32, 64)}
SIZE |= {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "tf32": 4, "f16x2": 4, "bf16x2": 4}
FLOATS = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2")
PRECISE = ("div", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh")
FLOAT_OPERATIONS = (
    *PRECISE, "add", "sub", "mul", "fma", "mad", "min", "max", "neg", "abs", "copysign",
)  # fmt: skip
INTEGER_OPERATIONS = (
    "add", "sub", "mul", "mad", "div", "rem", "min", "max", "neg", "abs", "and", "or", "xor", "not",
    "bfe", "bfi", "prmt", "lop3", "popc", "clz",
)  # fmt: skip
#: Modifiers of ld and st: sizes that their operands show, and what changes nothing here.
MODIFIERS = {"volatile", "weak", "cs", "cg", "ca", "cv", "lu", "wb", "wt", "nc", "v2", "v4", "v8"}
NOTHING = ("griddepcontrol", "fence", "membar", "prefetch", "nanosleep", "discard")
WGMMA_NOTHING = ("wgmma.fence", "wgmma.commit_group", "wgmma.wait_group")


class Unknown(Exception):
    """PTX that the machine does not model."""


@cache
def library() -> ctypes.CDLL:
    """The machine."""
    lib = ctypes.CDLL(str(build.machine()))
    lib.ptx_kernel.restype = ctypes.c_void_p
    lib.ptx_run.restype = ctypes.c_char_p
    return lib


@cache
def op_number(name: str) -> int:
    """The number of an operation."""
    number = library().ptx_op(name.encode())
    if number < 0:
        raise Unknown(f"no operation {name}")
    return number


def _up(x: int, unit: int) -> int:
    return -(-x // unit) * unit


def split(text: str) -> list[str]:
    """Operands: what stands between commas outside of brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)]


def vector(text: str) -> list[str]:
    """The parts of {a, b}, or [text]."""
    return [t.strip() for t in text.strip("{}").split(",")] if text[0] == "{" else [text]


class Module:
    """A PTX file; its kernels are decoded when they are first asked for."""

    _ENTRY = re.compile(r"^\s*(?:\.visible\s+)?\.entry\s+([\w$]+)", re.M)

    def __init__(self, text: str):
        self.text = text
        self.entries = {m[1]: m.start() for m in self._ENTRY.finditer(text)}
        self._files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]+)"', text, re.M))
        self._kernels: dict[str, Kernel] = {}

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name."""
        if name not in self._kernels:
            self._kernels[name] = Kernel(self, name)
        return self._kernels[name]

    def head(self) -> str:
        """What stands before the first kernel."""
        return self.text[: min(self.entries.values())]

    def source(self, line: int) -> str:
        """File and line of the source of a line of PTX."""
        above = self.text.split("\n")[:line]
        found = (re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", text) for text in reversed(above))
        at = next(filter(None, found), None)
        return f"{self._files.get(at[1], '?')}:{at[2]}" if at else "?"


class Kernel:
    """A decoded kernel."""

    def __init__(self, module: Module, name: str):
        self.module, self.name = module, name
        self._scopes: list[dict] = [{}]
        self._registers, self._predicates = 0, 2  # predicates 0 and 1 are false and true
        self._constants: dict[tuple, int] = {}
        self._specials: dict[str, int] = {}
        self._symbols: dict[str, tuple[str, int]] = {}
        self._labels: dict[str, int] = {}
        self._records: list[dict] = []
        self._operands: list[int] = []
        self._texts: list[str] = []
        self._grain = 4  # the smallest access to shared memory
        self._static = 0
        self.parameters: list[tuple[int, int]] = []  # where and how large
        self.max_threads: int | None = None
        dynamic = self._declare_shared(module.head())
        self._read(module.text, module.entries[name])
        self.dynamic_at = _up(self._static, 16)
        for symbol in dynamic:
            self._symbols[symbol] = ("shared", self.dynamic_at)
        self._finish()

    # --- the text ---

    def _declare_shared(self, text: str) -> list[str]:
        dynamic = []
        pattern = (
            r"\.(extern\s+)?\.?shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?"
        )
        for m in re.finditer(pattern, text):
            if m[1]:
                dynamic.append(m[4])
                self._symbols[m[4]] = ("dynamic", 0)
            else:
                self._static = _up(self._static, int(m[2] or 4))
                self._symbols[m[4]] = ("shared", self._static)
                self._static += SIZE[m[3]] * int(m[5] or 1)
        return dynamic

    def _read(self, text: str, start: int) -> None:
        brace = text.index("{", start)
        self._read_head(text[start:brace])
        line = text.count("\n", 0, brace) + 1
        # A bracket that is no operand's, a label, or a statement.
        token = re.compile(
            r"\s*(?:(\.loc[^\n]*|//[^\n]*|\.pragma[^;]*;)|([{}])|([\w$]+):(?!:)|([^;]+);)"
        )
        at = brace
        while True:
            m = token.match(text, at)
            line += text.count("\n", at, m.start(m.lastindex))
            self._line, at = line, m.start(m.lastindex)
            line, at = line + text.count("\n", at, m.end()), m.end()
            if m[2] == "{":
                self._scopes.append({})
            elif m[2] == "}":
                self._scopes.pop()
                if len(self._scopes) == 1:
                    return
            elif m[3]:
                self._labels[m[3]] = len(self._records)
            elif m[4]:
                self._statement(re.sub(r"//[^\n]*|\s+", " ", m[4]).strip())

    def _read_head(self, head: str) -> None:
        if m := re.search(r"\.(?:maxntid|reqntid)\s+(\d+(?:\s*,\s*\d+)*)", head):
            self.max_threads = int(np.prod([int(n) for n in m[1].split(",")]))
        at = 0
        pattern = (
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
            r"(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?"
        )
        for m in re.finditer(pattern, head):
            size = SIZE[m[2]] * int(m[4] or 1)
            at = _up(at, int(m[1] or SIZE[m[2]]))
            self._symbols[m[3]] = ("param", at)
            self.parameters.append((at, size))
            at += size
        self.parameter_bytes = at

    def _statement(self, text: str) -> None:
        self._text, self._guard = text, (-1, 0)
        try:
            if text.startswith(".reg"):
                self._declare(text)
            elif text.startswith(".shared"):
                self._declare_shared(text)
            elif text.startswith("."):
                raise Unknown("declaration")
            else:
                if m := re.match(r"@(!?)([%\w$]+)\s+", text):
                    self._guard = (self._predicate_of(m[2]), int(bool(m[1])))
                    text = text[m.end() :]
                op, _, rest = text.partition(" ")
                self._instruction(op, split(rest))
        except Unknown as reason:
            raise Unknown(f"{self.name}, line {self._line}: {self._text}: {reason}") from None

    # --- operands ---

    def _declare(self, text: str) -> None:
        m = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text)
        for name in split(m[2]):
            several = re.match(r"([%\w$]+)<(\d+)>$", name)
            names = [f"{several[1]}{k}" for k in range(int(several[2]))] if several else [name]
            width = 1 if m[1] == "pred" else 64 if SIZE[m[1]] == 8 else 32
            self._scopes[-1] |= {name: [width, None] for name in names}

    def _place(self, width: int) -> int:
        if width == 1:
            self._predicates += 1
            return self._predicates - 1
        self._registers += width // 32
        return self._registers - width // 32

    def _register(self, name: str) -> tuple[int, int] | None:
        """Width and place of a register; it gets a place when it is first named."""
        found = next((scope[name] for scope in reversed(self._scopes) if name in scope), None)
        if found is None:
            return None
        if found[1] is None:
            found[1] = self._place(found[0])
        return tuple(found)

    def _constant(self, width: int, value: int | str) -> int:
        key = (width, value if isinstance(value, str) else value & (1 << width) - 1)
        if key not in self._constants:
            self._constants[key] = self._place(width)
        return self._constants[key]

    @staticmethod
    def _number(text: str, width: int) -> int | None:
        if m := re.match(r"(-?)0([fFdD])([0-9a-fA-F]+)$", text):
            number = int(m[3], 16) ^ (bool(m[1]) << 4 * len(m[3]) - 1)
            if m[2] in "dD" and width == 32:
                number = int(np.uint64(number).view("f8").astype("f4").view("u4"))
            return number
        if m := re.match(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?$", text):
            return int(m[2], 0) * (-1 if m[1] else 1)
        return None

    def _source(self, text: str, width: int) -> int:
        """Place of a source of 64 bits, or of 32 and less."""
        if register := self._register(text):
            if register[0] != width:
                raise Unknown(f"{text} has {register[0]} bits, {width} are wanted")
            return register[1]
        if text in SPECIAL:
            if text not in self._specials:
                self._specials[text] = self._place(32)
            return self._specials[text]
        if (number := self._number(text, width)) is not None:
            return self._constant(width, number)
        if text in self._symbols:
            return self._constant(width, text)
        raise Unknown(f"operand {text}")

    def _destination(self, text: str, width: int) -> int:
        if text == "_":
            return self._place(1) if width == 1 else -1
        register = self._register(text)
        if register is None or register[0] != width:
            raise Unknown(f"destination {text}, {width} bits are wanted")
        return register[1]

    def _predicate_of(self, text: str) -> int:
        if text in ("0", "1", "-1"):
            return abs(int(text))
        if text[0] == "!":
            place, guard = self._place(1), self._guard
            self._guard = (-1, 0)
            self._emit("not.pred", [place], [self._predicate_of(text[1:])])
            self._guard = guard
            return place
        register = self._register(text)
        if register is None or register[0] != 1:
            raise Unknown(f"predicate {text}")
        return register[1]

    def _address(self, text: str) -> tuple[int, int, int]:
        """Place of the base, offset, 1 if the base has 64 bits."""
        m = re.match(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+)|(-\s*\w+))?\s*\]$", text)
        if m is None:
            raise Unknown(f"address {text}")
        offset = int((m[2] or m[3] or "0").replace(" ", ""), 0)
        if register := self._register(m[1]):
            return register[1], offset, int(register[0] == 64)
        return self._source(m[1], 64), offset, 1

    # --- instructions ---

    def _emit(self, name, d=(), s=(), *, imm=0, flags=0, width=0, label=None) -> None:
        guard, is_negated = self._guard
        self._records.append(
            {
                "op": op_number(name), "guard": guard, "is_negated": is_negated, "flags": flags,
                "dests": len(d), "sources": len(s), "first": len(self._operands), "target": label,
                "line": self._line, "width": width, "imm": imm,
            }
        )  # fmt: skip
        self._operands += [*d, *s]
        self._texts.append(self._text)

    def _instruction(self, op: str, a: list[str]) -> None:
        parts = op.split(".")
        base, kind, middle = parts[0], parts[-1], parts[1:-1]
        w = 64 if SIZE.get(kind) == 8 else 32
        emit, source, dest, pred = self._emit, self._source, self._destination, self._predicate_of
        bits = f"b{8 * SIZE.get(kind, 0)}"

        def plain(name: str, width: int = w, **more) -> None:
            emit(name, [dest(a[0], width)], [source(t, width) for t in a[1:]], **more)

        if base in ("ld", "st") and "async" not in middle:
            self._memory(base, middle, kind, a)
        elif op == "mov.pred":
            emit(op, [dest(a[0], 1)], [pred(a[1])])
        elif base == "mov" and "{" in a[1]:
            values = vector(a[1])
            size = 8 * SIZE[kind] // len(values)
            emit("pack", [dest(a[0], w)], [source(t, 32) for t in values], imm=size)
        elif base == "mov" and "{" in a[0]:
            to = vector(a[0])
            size = 8 * SIZE[kind] // len(to)
            emit("unpack", [dest(t, 32) for t in to], [source(a[1], w)], imm=size)
        elif base == "mov":
            plain(f"mov.{bits}")
        elif base == "cvta" and kind == "u64" and middle[-1] in ("global", "shared"):
            plain("mov.b64" if middle[-1] == "global" else op.removesuffix(".u64"))
        elif base == "setp":
            by = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(middle[0], middle[0])
            how = next((n for n, x in enumerate(("and", "or", "xor"), 1) if x in middle[1:]), 0)
            third = [pred(a[3])] if how else []
            to = [dest(t, 1) for t in a[0].split("|")]
            flags = FTZ if "ftz" in middle else 0
            values = [source(a[1], w), source(a[2], w)]
            emit(f"setp.{by}.{kind}", to, values + third, imm=how, flags=flags)
        elif base == "selp":
            emit(f"selp.{bits}", [dest(a[0], w)], [source(a[1], w), source(a[2], w), pred(a[3])])
        elif base == "cvt":
            self._convert(middle, kind, a)
        elif kind == "pred" and base in ("and", "or", "xor", "not"):
            emit(op, [dest(a[0], 1)], [pred(t) for t in a[1:]])
        elif base in ("shl", "shr"):
            emit(op, [dest(a[0], w)], [source(a[1], w), source(a[2], 32)])
        elif kind in FLOATS and base in FLOAT_OPERATIONS:
            self._float(base, middle, kind, a, w)
        elif "wide" in middle:
            wide = 64 if SIZE[kind] == 4 else 32
            emit(
                op, [dest(a[0], wide)],
                [source(a[1], 32), source(a[2], 32), *(source(t, wide) for t in a[3:])],
            )  # fmt: skip
        elif base == "shf":
            plain(f"shf.{middle[0]}.b32", imm=int("wrap" in middle))
        elif base in INTEGER_OPERATIONS and kind in SIZE:
            plain(op)
        elif base == "bra":
            emit("bra", label=a[0])
        elif op in ("ret", "exit", "trap"):
            emit("exit" if op == "ret" else op)
        elif re.match(r"fence\.(acquire|acq_rel|sc)\.", op):
            emit("fence.acquire")
        elif base in NOTHING or op.startswith(WGMMA_NOTHING):
            emit("nop")
        else:
            self._collective(op, parts, a)

    def _memory(self, base: str, middle: list[str], kind: str, a: list[str]) -> None:
        space = "generic"
        for part in middle:
            if part in ("global", "shared", "param", "shared::cluster", "shared::cta"):
                space = part.removesuffix("::cta")
            elif part not in MODIFIERS and part[:4] not in ("L1::", "L2::"):
                raise Unknown(f"modifier .{part}")
        registers, at = (a[0], a[1]) if base == "ld" else (a[1], a[0])
        values, (where, offset, width) = vector(registers), self._address(at)
        if space not in ("global", "param"):
            self._grain = min(self._grain, SIZE[kind])
        widths = {register[0] for t in values if (register := self._register(t))}
        flags = NON_COHERENT if "nc" in middle else 0
        w = 64 if SIZE[kind] == 8 else 32
        if widths == {64} and w == 32:
            flags, w = flags | WIDE, 64
        is_signed = base == "ld" and kind[0] == "s" and SIZE[kind] < 8
        name = f"{base}.{space}.{'s' if is_signed else 'u'}{8 * SIZE[kind]}"
        more = {"imm": offset, "flags": flags, "width": width}
        if base == "ld":
            self._emit(name, [self._destination(t, w) for t in values], [where], **more)
        else:
            self._emit(name, [], [where, *(self._source(t, w) for t in values)], **more)

    def _convert(self, middle: list[str], kind: str, a: list[str]) -> None:
        to, how = middle[-1], middle[:-1]
        flags = ("ftz" in how) * FTZ | ("sat" in how) * SAT
        modes = {m: n for n, m in enumerate(("rn", "rz", "rm", "rp"))}
        modes |= {f"{m}i": n + 8 for m, n in modes.items()}
        mode = [part for part in how if part not in ("ftz", "sat")] or ["rn"]
        s, d = (64 if SIZE[kind] == 8 else 32), (64 if SIZE[to] == 8 else 32)
        name = f"cvt.{to}.{kind}"
        if to == "tf32":
            return self._emit(
                f"cvt.{mode[0]}.tf32.f32", [self._destination(a[0], 32)], [self._source(a[1], 32)]
            )
        is_known = mode == ["rn"] or to not in FLOATS or mode[0][-1] == "i"
        is_known |= (mode, name) == (["rz"], "cvt.f32.f64")
        if len(mode) > 1 or mode[0] not in modes or not is_known:
            raise Unknown("rounding")
        if (register := self._register(a[0])) and register[0] == 64 and d == 32:
            flags, d = flags | WIDE, 64
        if (register := self._register(a[1])) and register[0] == 64 and s == 32:
            half = self._place(32)  # the low half of a wide register
            self._emit("cvt.u32.u64", [half], [register[1]])
            values = [half]
        else:
            values = [self._source(t, s) for t in a[1:]]
        self._emit(name, [self._destination(a[0], d)], values, imm=modes[mode[0]], flags=flags)

    def _float(self, base: str, middle: list[str], kind: str, a: list[str], w: int) -> None:
        if unknown := set(middle) - {"rn", "ftz", "sat", "approx", "full", "NaN"}:
            raise Unknown(f"modifier {unknown}")
        name = "fma" if base == "mad" else base
        if base in PRECISE:
            name += "." + next(part for part in ("approx", "full", "rn") if part in middle)
        if "NaN" in middle:
            name += ".NaN"
        flags = ("ftz" in middle) * FTZ | ("sat" in middle) * SAT
        values = [self._source(t, w) for t in a[1:]]
        self._emit(f"{name}.{kind}", [self._destination(a[0], w)], values, flags=flags)

    def _collective(self, op: str, parts: list[str], a: list[str]) -> None:
        """What lanes, warps or CTAs do together."""
        emit, source, dest = self._emit, self._source, self._destination

        def words(text: str, width: int = 32) -> list[int]:
            return [source(t, width) for t in vector(text)]

        if op.startswith("bar.warp.sync"):
            emit("bar.warp.sync", [], [source(a[0], 32)], flags=MASKED)
        elif re.match(r"(bar|barrier)(\.cta)?\.sync(\.aligned)?$", op) and len(a) == 1:
            emit("bar.sync", imm=int(a[0], 0), flags=ALIGNED)
        elif re.match(r"barrier\.cluster\.(arrive|wait)(\.release|\.acquire)?\.aligned$", op):
            emit(".".join(parts[:3]), flags=ALIGNED)
        elif op.startswith("shfl.sync."):
            to = a[0].split("|")
            made = [dest(to[0], 32), *(dest(t, 1) for t in to[1:])]
            emit(f"shfl.{parts[2]}", made, [source(t, 32) for t in a[1:5]], flags=MASKED)
        elif parts[:2] == ["redux", "sync"]:
            values = [source(a[1], 32), source(a[2], 32)]
            emit(f"redux.{parts[2]}.{parts[3]}", [dest(a[0], 32)], values, flags=MASKED)
        elif op.startswith("vote.sync.ballot"):
            values = [self._predicate_of(a[1]), source(a[2], 32)]
            emit("vote.ballot", [dest(a[0], 32)], values, flags=MASKED)
        elif op.startswith("mma.sync.aligned."):
            shape, rows, columns, d, x, y, c = parts[3:]
            w, sums = (64, "f64") if x == "f64" else (32, "f32")
            if (rows, columns, y, d, c) != ("row", "col", x, sums, sums):
                raise Unknown("types or layout")
            values = [place for t in a[1:4] for place in words(t, w)]
            emit(f"mma.{shape}.{x}", [dest(t, w) for t in vector(a[0])], values, flags=ALIGNED)
        elif m := re.match(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k\d+\.f32\.(\w+)\.\2$", op):
            in_registers = a[1][0] == "{"
            values = [*words(a[1], 32 if in_registers else 64), source(a[2], 64)]
            scale_a, scale_b, *is_transposed = (int(t, 0) for t in a[4:])
            if (scale_a, scale_b) != (1, 1):
                raise Unknown("scale")
            of_a = bool(is_transposed) and not in_registers and is_transposed[0]
            of_b = bool(is_transposed) and is_transposed[-1]
            width = of_a | of_b << 1 | in_registers << 2
            to = [dest(t, 32) for t in vector(a[0])]
            values.append(self._predicate_of(a[3]))
            emit(f"wgmma.{m[2]}", to, values, imm=int(m[1]), width=width, flags=ALIGNED)
        elif m := re.match(
            r"(ld|st)matrix\.sync\.aligned\.m8n8\.x\d(\.trans)?\.shared(::cta)?\.b16$", op
        ):
            is_load = m[1] == "ld"
            where, offset, width = self._address(a[1 if is_load else 0])
            values = vector(a[0 if is_load else 1])
            made = [dest(t, 32) for t in values] if is_load else []
            given = [where] + ([] if is_load else [source(t, 32) for t in values])
            self._grain = min(self._grain, 2)
            name = f"{m[1]}matrix{m[2] or ''}"
            emit(name, made, given, imm=offset, width=width, flags=ALIGNED)
        elif op == "movmatrix.sync.aligned.m8n8.trans.b16":
            emit("movmatrix.trans", [dest(a[0], 32)], [source(a[1], 32)], flags=ALIGNED)
        elif op in ("cp.async.commit_group", "cp.async.wait_all", "cp.async.wait_group"):
            emit(op, imm=int(a[0], 0) if a else 0)
        elif re.match(r"cp\.async\.c[ag]\.shared(::cta)?\.global(\.L2::\w+)?$", op):
            (to, at, wide_to), (of, from_at, wide_of) = self._address(a[0]), self._address(a[1])
            size = [source(a[3], 32)] if len(a) > 3 else []
            more = {"imm": int(a[2], 0), "width": wide_to | wide_of << 1}
            emit("cp.async", [at, from_at], [to, of, *size], **more)
        elif op == "mbarrier.init.shared::cta.b64":
            where, offset, width = self._address(a[0])
            emit("mbarrier.init", [], [where, source(a[1], 32)], imm=offset, width=width)
        elif op == "mbarrier.arrive.expect_tx.shared::cta.b64" and a[0] == "_":
            where, offset, width = self._address(a[1])
            emit(op.removesuffix(".shared::cta.b64"), [], [where, source(a[2], 32)],
                 imm=offset, width=width)  # fmt: skip
        elif m := re.match(
            r"(mbarrier\.try_wait\.parity)(\.acquire|\.relaxed)?(\.cta|\.cluster)?"
            r"\.shared::cta\.b64$", op,
        ):  # fmt: skip
            where, offset, width = self._address(a[1])
            # Without a word of either, it acquires in the scope of its CTA.
            flags = RELAXED * (m[2] == ".relaxed") | OF_CTA * (m[3] != ".cluster")
            emit(m[1], [dest(a[0], 1)], [where, source(a[2], 32)],
                 imm=offset, width=width, flags=flags)  # fmt: skip
        elif m := re.match(
            r"st\.async(?:\.weak)?\.shared::cluster\.mbarrier::complete_tx::bytes"
            r"(?:\.v[24])?\.[bu](32|64)$", op,
        ):  # fmt: skip
            (to, at, wide_to), (of, of_at, wide_of) = self._address(a[0]), self._address(a[2])
            more = {"imm": int(m[1]) // 8, "width": wide_to | wide_of << 1}
            emit("st.async", [at, of_at], [to, of, *words(a[1], int(m[1]))], **more)
        elif op == "mapa.shared::cluster.u32":
            emit(op, [dest(a[0], 32)], [source(a[1], 32), source(a[2], 32)])
        else:
            raise Unknown("instruction")

    def _finish(self) -> None:
        for record in self._records:
            label = record["target"]
            record["target"] = -1 if label is None else self._labels[label]
        code = np.array([tuple(map(r.get, RECORD.names)) for r in self._records], RECORD)
        constants = np.array(
            [
                (place, width, self._symbols[value][1] if isinstance(value, str) else value)
                for (width, value), place in self._constants.items()
            ],
            "<i4, <i4, <u8",
        )
        specials = np.array([(SPECIAL[n], at) for n, at in self._specials.items()], "<i4")
        operands = np.array(self._operands, "<i4")

        def pointer(array):
            return array.ctypes.data_as(ctypes.c_void_p)

        texts = b"".join(text.encode() + b"\0" for text in self._texts)
        self._handle = ctypes.c_void_p(
            library().ptx_kernel(
                pointer(code), len(code), pointer(operands), len(operands), texts,
                pointer(constants), len(constants), pointer(specials), len(self._specials),
                self._registers, self._predicates, self._grain,
            )
        )  # fmt: skip
        del self._records, self._texts, self._operands

    def run(self, grid, block, parameters: bytes, dynamic_shared=0, cluster=1, seed=0) -> None:
        """Executes a launch.

        Raises:
            RuntimeError: with what it did wrong and where.
        """
        threads = int(np.prod(block))
        if threads > (self.max_threads or 1024):
            raise RuntimeError(f"{self.name}: {threads} threads, at most {self.max_threads}")
        assert len(parameters) == self.parameter_bytes, (len(parameters), self.parameter_bytes)
        three = ctypes.c_uint32 * 3
        report = library().ptx_run(
            self._handle, three(*grid), three(*block), cluster, self.dynamic_at + dynamic_shared,
            parameters, len(parameters), ctypes.c_uint64(seed),
        ).decode()  # fmt: skip
        if report:
            line = re.search(r"; line (\d+): ", report)
            place = f" <{self.module.source(int(line[1]))}>" if line else ""
            raise RuntimeError(f"{self.name}: {report}{place}")


def register(address: int, size: int, name: str, *, is_writable: bool, is_written: bool) -> None:
    """Makes global memory known to the machine."""
    at, count = ctypes.c_uint64(address), ctypes.c_uint64(size)
    library().ptx_register(at, count, name.encode(), int(is_writable), int(is_written))


def forget_buffers() -> None:
    """The machine knows no global memory."""
    library().ptx_forget_buffers()
