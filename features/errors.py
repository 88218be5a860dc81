"""Errors that name the thing, the bad value, the rule and the next step."""


class InputError(Exception):
    """Something given by the user (file, mapping, data, option) breaks a rule; the CLI exits with 2.

    The message reads ``<where>: <problem>`` and, on a second line, ``fix: <next step>``.
    """

    def __init__(self, where: str, problem: str, fix: str) -> None:
        self.where, self.problem, self.fix = where, problem, fix
        super().__init__(f"{where}: {problem}\n  fix: {fix}")


class Unreadable(ValueError):
    """A source that cannot be read: the problem and the next step, without a value. Who catches it knows the place (`InputError`)."""

    def __init__(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(problem)


class ContractError(InputError):
    """Data break a contract: nothing downstream was written; the CLI exits with 2."""


class RefusedError(Exception):
    """A gate refused (promotion, packaging); the last good state stays in force; the CLI exits with 3."""

    def __init__(self, message: str, champion_stays: bool = False) -> None:
        self.champion_stays = champion_stays
        super().__init__(message)
