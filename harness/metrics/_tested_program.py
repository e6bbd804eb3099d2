"""Program that runs an answer's code and then its tests, as source, for an interpreter in isolation.

Invariant: it says that it has begun, and gives the nonce back only once all tests have ended. Builtins that
the code replaced are put back before the tests run; a value that tells no others apart ends it.
"""

# The nonce is read only once the tests have ended; code that looks for the pipe in `__main__` can read it.
# Of numbers one, the next and the double are not all equal by any modulus.
DRIVER = """
import ast, builtins, fcntl, json, os, random, sys, types
from operator import contains, eq, ge, gt, le, lt, ne
def read(n):
    found = b""
    while len(found) < n:
        found += os.read(0, n - len(found)) or os._exit(3)
    return found
program = json.loads(read(int(read(10))))
pipe, out = (fcntl.fcntl(fd, fcntl.F_DUPFD, random.SystemRandom().randrange(10, 50)) for fd in (0, 1))
null = os.open("/dev/null", os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
os.write(out, b"+")
def call(test):
    found = test()
    if hasattr(found, "__await__"):
        import asyncio
        asyncio.run(found)
def test(name, found):
    unittest = sys.modules.get("unittest")
    if not isinstance(found, type):
        if name.startswith("test_") and callable(found):
            call(found)
    elif unittest and issubclass(found, unittest.TestCase):
        unittest.defaultTestLoader.loadTestsFromTestCase(found).debug()
    elif name.startswith("Test"):
        for each in dir(found):
            if each.startswith("test_"):
                call(getattr(found(), each))
build, classes = builtins.__build_class__, {"answer.py": [], "tests.py": []}
def build_class(function, *arguments, **named):
    made = build(function, *arguments, **named)
    classes.get(function.__code__.co_filename, []).append(made)
    return made
builtins.__build_class__ = build_class
n = random.SystemRandom().randrange(10**6, 10**9)
kinds = {int: (n, n + 1, 2 * n), str: (str(n), str(n + 1), ""), list: ([n], [n + 1], [])}
kinds |= {float: kinds[int], object: (object(), types.SimpleNamespace(n=n))}
def holds(compare, *values):
    try:
        return bool(compare(*values))
    except Exception:
        return False
def equal(one, other):
    return holds(eq, one, other) or holds(eq, other, one) or holds(is_no_other, one, other)
def is_no_other(one, other):
    return not one != other
held = [n, n + 1], [n], []
expected = {bool: (False, True), bytes: (b"%d" % n, b"%d" % (n + 1), b""), dict: ({n: n}, {n: n + 1}, {})}
expected |= {kind: tuple(map(kind, held)) for kind in (frozenset, list, set, tuple)}
expected |= {float: kinds[int], int: kinds[int], str: kinds[str]}
def equals_all(value, kind):
    return all(equal(value, other) for other in expected[kind])
def refuse_any(first, second, leave=os._exit):
    left = [(first, second)]
    while left:
        one, other = left.pop()
        if type(one) in (list, tuple) and type(other) in (list, tuple):
            left += [pair for pair in zip(one, other) if not plain.issuperset(map(type, pair))]
        elif type(one) is type(other) is dict:
            left += zip(one.values(), map(other.get, one))
        else:
            for value, wanted in ((one, other), (other, one)):
                is_plain = type(value) in expected or type(value) in plain
                if type(wanted) in expected and not is_plain and not is_of_tests(value):
                    if equals_all(value, type(wanted)):
                        leave(1)
    return refuse_alike(first), refuse_alike(second)
def compare_equal(one, other):
    return eq(*refuse_any(one, other))
def compare_unequal(one, other):
    return ne(*refuse_any(one, other))
def sorts_alike(value, other):
    is_below, is_above = (any(holds(one, value, other) for one in both) for both in ((lt, le), (gt, ge)))
    return is_below and is_above
def compares_alike(value):
    of_its_kind = [others for kind, others in kinds.items() if isinstance(value, kind)]
    is_anywhere = any(sorts_alike(value, other) for other in (n, str(n), [n]))
    return is_anywhere or any(all(equal(value, other) for other in others) for others in of_its_kind)
def made_alike(made):
    return compares_alike(made.__new__(made))
plain = {bool, bytes, complex, float, int, str, type(None)}
def parts_of(value):
    if type(value) is dict:
        return [*value, *value.values()]
    if type(value) in (frozenset, list, set, tuple):
        return value
    return list(getattr(value, "__dict__", {}).values()) if type(value).__module__ == "answer" else ()
mocks = set()
def is_of_tests(value):
    mock = sys.modules.get("unittest.mock")
    if mock and "ANY" in mocks and value is mock.ANY:
        return True
    is_mock = mock and "unittest.mock" in mocks and isinstance(value, mock.NonCallableMock)
    return is_mock or type(value) in classes["tests.py"]
def read_by_tests(value):
    known, left = set(), [value]
    while left:
        one = left.pop()
        if type(one) in plain or id(one) in known:
            continue
        known.add(id(one))
        parts = parts_of(one)
        left += [part for part in parts if type(part) not in plain]
        if not (parts is one or is_of_tests(one)):
            yield one
def refuse_alike(value, leave=os._exit):
    if type(value) not in plain and any(map(compares_alike, read_by_tests(value))):
        leave(1)
    return value
def fits_all(value):
    holds_all = hasattr(type(value), "__contains__") and type(value) not in expected
    if holds_all and all(holds(contains, value, other) for other in (object(), n, str(n))):
        return True
    return any(equals_all(value, kind) for kind in expected)
def refuse_fitting(value, leave=os._exit):
    if type(value) not in plain and any(map(fits_all, read_by_tests(value))):
        leave(1)
    return refuse_alike(value)
comparisons = {ast.Eq: "__equal__", ast.NotEq: "__unequal__"}
class Checks(ast.NodeTransformer):
    def checked(self, node, by="__checked__"):
        if isinstance(node, (ast.Constant, ast.Starred)):
            return node
        return ast.Call(ast.Name(by, ast.Load()), [node], [])
    def visit_Compare(self, node):
        self.generic_visit(node)
        name = comparisons.get(type(node.ops[0])) if len(node.ops) == 1 else None
        if name:
            return ast.Call(ast.Name(name, ast.Load()), [node.left, *node.comparators], [])
        is_member = len(node.ops) > 1 or isinstance(node.ops[0], (ast.In, ast.NotIn))
        by = "__fitting__" if is_member else "__checked__"
        node.left, *node.comparators = (self.checked(one, by) for one in (node.left, *node.comparators))
        return node
    def visit_Call(self, node):
        self.generic_visit(node)
        first, rest = node.args[:2], node.args[2:]
        is_assertion = isinstance(node.func, ast.Attribute) and node.func.attr.startswith("assert")
        if is_assertion and len(first) == 2 and not any(isinstance(one, ast.Starred) for one in first):
            if node.func.attr in ("assertIn", "assertNotIn"):
                first = [self.checked(one, "__fitting__") for one in first]
            first = [ast.Starred(ast.Call(ast.Name("__refuse_any__", ast.Load()), first, []), ast.Load())]
        node.args = list(map(self.checked, (*first, *rest)))
        for given in node.keywords:
            given.value = self.checked(given.value)
        return node
def parse_tests(text):
    global mocks
    mocks = {word for word in ("ANY", "unittest.mock") if word in text}
    return ast.fix_missing_locations(Checks().visit(ast.parse(text, "tests.py")))
def run(read=os.read, write=os.write, leave=os._exit):
    module = sys.modules["answer"] = types.ModuleType("answer")
    scope, own = vars(module), dict(vars(builtins))
    try:
        exec(compile(program["code"], "answer.py", "exec"), scope)
        vars(builtins).update(own)
        tests = compile(parse_tests(program["tests"]), "tests.py", "exec")
        scope |= {"__checked__": refuse_alike, "__refuse_any__": refuse_any, "__fitting__": refuse_fitting}
        scope |= {"__equal__": compare_equal, "__unequal__": compare_unequal}
        known = dict(scope)
        exec(tests, scope)
        for name, found in list(scope.items()):
            if known.get(name) is not found:
                test(name, found)
        if any(holds(made_alike, made) for made in classes["answer.py"]):
            leave(1)
    except BaseException:
        leave(1)
    write(out, read(pipe, 100))
    leave(0)
run()
"""
