"""Describe an error for the log without its message, which may contain text of a completion."""


def place_of(error: BaseException) -> str:
    """Type of an error, and file and line where it was raised.

    >>> try:
    ...     int("secret")
    ... except ValueError as error:
    ...     place_of(error).startswith("ValueError at ")
    True
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__} at {place}"
