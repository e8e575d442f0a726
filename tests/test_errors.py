"""Holds the tree of exceptions against its drawing, and failures against the wire's limit."""

import builtins
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gaspar import errors
from gaspar.errors import MAX_DETAIL, Code, Failure, GasparError, RequestError, failure

CLASSES = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, GasparError)
}
# "│   ├── RequestTimeout       4  also TimeoutError": depth, name, code or "", foreign base or ""
DRAWN = re.findall(r"^((?:│   |    )*)[├└]── (\w+) *(\d*) *(?:also (\w+))?", errors.__doc__ or "", re.MULTILINE)


def drawn_parents() -> dict[str, str]:
    path, parents = ["GasparError"], {}
    for indent, name, _, _ in DRAWN:
        depth = len(indent) // 4 + 1
        parents[name] = path[depth - 1]
        path[depth:] = [name]
    return parents


def test_the_tree_at_the_top_is_the_tree() -> None:
    assert drawn_parents() == {
        name: kind.__bases__[0].__name__ for name, kind in CLASSES.items() if kind is not GasparError
    }


@pytest.mark.parametrize(("name", "code", "also"), [each[1:] for each in DRAWN])
def test_each_error_has_the_code_and_the_foreign_base_that_are_drawn(name: str, code: str, also: str) -> None:
    kind = CLASSES[name]
    foreign = [base for base in kind.__bases__ if not issubclass(base, GasparError)]
    assert foreign == ([getattr(builtins, also)] if also else [])
    assert getattr(kind, "code", None) == (int(code) if code else None)


def test_each_code_of_the_wire_has_one_error() -> None:
    codes = sorted(
        kind.code for kind in CLASSES.values() if issubclass(kind, RequestError) and kind is not RequestError
    )
    assert codes == sorted(Code)


def test_an_errors_name_is_its_codes_name() -> None:
    exceptions = {"REQUEST_TIMEOUT": "TIMEOUT"}  # TimeoutError is Python's
    for kind in CLASSES.values():
        if issubclass(kind, RequestError) and kind is not RequestError:
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).upper()
            assert exceptions.get(name, name) == kind.code.name


def test_a_bind_error_keeps_its_number_and_text() -> None:
    error = errors.BindError(98, "cannot listen on 127.0.0.1:1: Address already in use")
    assert error.errno == 98
    assert error.strerror == "cannot listen on 127.0.0.1:1: Address already in use"


def test_a_handler_load_error_shows_one_line_and_keeps_the_story() -> None:
    error = errors.HandlerLoadError("no module 'x'", "Traceback ...\n")
    assert str(error) == "no module 'x'"
    assert error.traceback == "Traceback ...\n"
    assert errors.HandlerLoadError("no module 'x'").traceback == ""


# ---- failures ----


def test_a_short_failure_travels_whole() -> None:
    why = failure(Code.HANDLER_ERROR, "no", type="ValueError", traceback="Traceback\nValueError: no\n")
    assert why == Failure(Code.HANDLER_ERROR, why.detail)
    assert json.loads(why.detail) == {
        "type": "ValueError",
        "message": "no",
        "traceback": "Traceback\nValueError: no\n",
    }
    assert why.message == "no"


@pytest.mark.parametrize("code", Code)
def test_a_failure_without_a_type_is_of_its_codes_name(code: Code) -> None:
    assert json.loads(failure(code, "x").detail)["type"] == code.name


def test_a_long_traceback_is_cut_at_its_front() -> None:
    story = "".join(f"line {number}\n" for number in range(100_000))
    detail = json.loads(failure(Code.HANDLER_ERROR, "deep", traceback=story).detail)
    assert detail["message"] == "deep"
    assert len(detail["traceback"]) > 1000
    assert story.endswith(detail["traceback"])


any_text = st.builds(
    lambda text, times: text * times,
    st.text(st.characters(exclude_categories=()), max_size=20),  # lone surrogates too
    st.sampled_from([1, 100, 10_000]),
)


@settings(deadline=None, max_examples=100)
@given(any_text, st.dictionaries(st.sampled_from(["type", "traceback", "exit", "stack"]), any_text))
@example("\U0001f600" * 5000, {"traceback": "\U0001f600" * 100_000, "stack": "\0" * 100_000, "type": "\ud800" * 9999})
@example("\0" * 100_000, {})
def test_a_failure_fits_the_wire_whatever_it_says(message: str, more: dict[str, str]) -> None:
    why = failure(Code.HANDLER_ERROR, message, **more)
    assert len(why.detail) <= MAX_DETAIL
    detail = json.loads(why.detail.decode("utf-8"))
    assert detail.keys() == {"type", "message", *more}
    assert message.startswith(detail["message"])
    assert all(text.endswith(detail[name]) for name, text in more.items())
    assert why.message == detail["message"]
