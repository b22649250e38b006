"""What a user can do something about."""


class InputError(ValueError):
    """The input is unusable as it stands.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it
    on standard error and exits with code 2.
    """


class SettingError(InputError):
    """A setting has a value that cannot be used.

    Attributes
    ----------
    name : str
        Of the setting; the command line says ``--name``.
    complaint : str
        The rest of the sentence.
    """

    def __init__(self, name: str, complaint: str) -> None:
        super().__init__(name, complaint)
        self.name, self.complaint = name, complaint

    def __str__(self) -> str:
        return f"The {self.name} {self.complaint}"
