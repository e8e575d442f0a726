"""Holds the tree of exceptions against its drawing, and failures against the wire's limit, both ways."""

import builtins
import copy
import json
import pickle
import re
import traceback
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gaspar import errors
from gaspar.answer import Receipt
from gaspar.errors import MAX_DETAIL, Code, Failure, GasparError, RequestError, failure, restore

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


# ---- errors from the wire ----


def wired(why: Failure, receipt: Receipt | None = None) -> RequestError:
    return restore(int(why.code), why.detail, receipt)


@pytest.mark.parametrize("code", Code)
def test_a_failure_is_restored_as_its_codes_error(code: Code) -> None:
    receipt = Receipt(waited=1.5, ran=0.25)
    error = wired(
        failure(code, "what happened", type="T", traceback="where\n", exit="SIGKILL", stack="there\n"), receipt
    )
    assert type(error).code is error.code is code
    assert error.args == ("T: what happened" if code is Code.HANDLER_ERROR else "what happened",)
    assert (error.type, error.traceback, error.exit, error.stack) == ("T", "where\n", "SIGKILL", "there\n")
    assert error.receipt is receipt


def test_what_the_daemon_does_not_say_is_empty() -> None:
    error = restore(5, b'{"message":"gone"}', None)
    assert (error.type, error.traceback, error.exit, error.stack, error.receipt) == ("", "", "", "", None)


def test_a_restored_timeout_is_caught_as_pythons_own() -> None:
    with pytest.raises(TimeoutError, match=r"^too late$"):
        raise wired(failure(Code.TIMEOUT, "too late"))


@pytest.mark.parametrize("code", [0, 11, 77, 255])
def test_a_code_that_this_version_does_not_know_is_a_request_error_with_that_code(code: int) -> None:
    error = restore(code, b'{"type":"NEW","message":"news"}', None)
    assert type(error) is RequestError
    assert (error.code, error.type) == (code, "NEW")
    assert str(error) == f"error {code}, which this client does not know: news"


@pytest.mark.parametrize(
    "detail",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"7",
        b"null",
        b'"text"',
        b"[" * 65536,
        b'{"":' * 16000,
        b'{"message":7,"type":[],"traceback":{},"exit":null,"stack":true}',
        b"9" * 65536,
    ],
)
def test_an_error_is_restored_whatever_state_its_detail_is_in(detail: bytes) -> None:
    for code in Code:
        error = restore(code, detail, None)
        assert (error.code, error.args) == (code, ("",))
        assert (error.type, error.traceback, error.exit, error.stack) == ("", "", "", "")


@settings(deadline=None)
@given(st.integers(0, 255), st.binary(max_size=100) | any_text.map(lambda text: json.dumps({"message": text}).encode()))
def test_any_detail_restores_to_an_error_that_prints(code: int, detail: bytes) -> None:
    error = restore(code, detail, None)
    assert isinstance(error, RequestError)
    assert printed(error)


@settings(deadline=None)
@given(any_text, any_text)
def test_what_is_made_into_a_failure_comes_back(message: str, story: str) -> None:
    error = wired(failure(Code.CONSUMER_LOST, message, stack=story))
    assert message.startswith(error.args[0])
    assert story.endswith(error.stack)


STORY = 'Traceback (most recent call last):\n  File "theirs.py", line 7, in handle\nZeroDivisionError: by zero\n'


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def raised(error: RequestError) -> RequestError:
    with pytest.raises(RequestError) as caught:
        raise error
    return caught.value


def pickled(error: RequestError) -> RequestError:
    loaded = pickle.loads(pickle.dumps(error))
    assert isinstance(loaded, RequestError)
    return loaded


@pytest.mark.parametrize("through", [raised, pickled, copy.copy])
def test_a_handler_error_prints_the_handlers_traceback_below_the_local_one(
    through: Callable[[RequestError], RequestError],
) -> None:
    error = through(wired(failure(Code.HANDLER_ERROR, "by zero", type="ZeroDivisionError", traceback=STORY)))
    assert printed(error).endswith(
        f"gaspar.errors.HandlerError: ZeroDivisionError: by zero\n\nIn the daemon's handler:\n{STORY}"
    )
    assert printed(error).count("In the daemon's handler:") == 1


@pytest.mark.parametrize("through", [raised, pickled, copy.copy])
def test_a_timeout_prints_where_the_handler_was(through: Callable[[RequestError], RequestError]) -> None:
    error = through(wired(failure(Code.TIMEOUT, "ran for 3.000 s", stack="  File ...")))
    assert isinstance(error, errors.RequestTimeout)
    assert printed(error).endswith(
        "gaspar.errors.RequestTimeout: ran for 3.000 s\n\nWhere the daemon's handler was:\n  File ...\n"
    )


@pytest.mark.parametrize("code", Code)
def test_an_error_without_a_story_is_one_line(code: Code) -> None:
    error = wired(failure(code, "what happened", type="T", traceback="", exit="SIGKILL"))
    assert str(error) == ("T: what happened" if code is Code.HANDLER_ERROR else "what happened")
    assert printed(error) == f"gaspar.errors.{type(error).__name__}: {error}\n"


@pytest.mark.parametrize("code", [*Code, 77])
def test_an_error_survives_pickling(code: int) -> None:
    detail = json.dumps({"type": "T", "message": "m", "traceback": STORY, "exit": "SIGKILL", "stack": "there"}).encode()
    error = restore(code, detail, Receipt(waited=1.5, ran=0.25))
    other = pickled(error)
    assert type(other) is type(error)
    assert (str(other), other.args, other.code, vars(other)) == (str(error), error.args, error.code, vars(error))
    assert (other.receipt, other.exit) == (Receipt(1.5, 0.25), "SIGKILL")
    assert printed(other) == printed(error)


@pytest.mark.parametrize(
    ("type_", "message", "text"), [("E", "", "E"), ("", "m", "m"), ("", "", ""), ("E", "m", "E: m")]
)
def test_a_handler_errors_text_is_what_was_raised(type_: str, message: str, text: str) -> None:
    detail = json.dumps({"type": type_, "message": message}).encode()
    assert restore(6, detail, None).args == (text,)


def test_a_lost_connection_may_have_run_unless_it_is_said_otherwise() -> None:
    error = errors.ConnectionLost("gone")
    assert error.sent
    error.sent = False
    assert not pickle.loads(pickle.dumps(error)).sent
