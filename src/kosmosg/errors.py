"""The named errors of kosmosg, which the command line prints as one line each."""


class KosmosGError(Exception):
    """An error whose message names the offending value and the remedy; the root of all of ours."""


class ConfigError(KosmosGError):
    """A configuration path, value or combination of options that cannot work."""


class PromptError(KosmosGError):
    """A prompt, or a picture in it, that cannot be used as given."""


class DataError(KosmosGError):
    """A record or file of training data that cannot be read.

    Args:
        message: What is wrong, where, and what to do about it.
        reason: A short fixed phrase under which such errors are counted, so that ten thousand bad
            records make one line of a report.
    """

    def __init__(self, message: str, *, reason: str = "bad record") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Return what pickle needs; by default an exception forgets its keyword arguments."""
        return (_rebuild_data_error, (str(self), self.reason))


class CheckpointError(KosmosGError):
    """Weights or training state: missing, damaged, of another version or impossible to write."""


def _rebuild_data_error(message: str, reason: str) -> DataError:
    return DataError(message, reason=reason)
