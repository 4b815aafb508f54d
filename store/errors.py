"""The errors that a person can mend: each message says what was expected, what was found and what to do."""


class DiptychError(Exception):
    """Something that a person can mend; `cli` prints the message and exits with status 2."""


class PairsError(DiptychError):
    """A pairs file that cannot be taken as it is; names file, line and text."""


class EmbeddingsError(DiptychError):
    """An embeddings folder that is missing, of the wrong size, or not finite."""


class WeightsError(DiptychError):
    """A checkpoint that is missing, incomplete, or of another architecture."""


class ImagesError(DiptychError):
    """A folder of images with nothing to read in it, or options that do not fit the checkpoint's image size."""


class SettingsError(DiptychError):
    """An option of generation out of its range, or a prompt that the chat template cannot take."""


class DatabaseError(DiptychError):
    """A database that cannot be opened, is none of ours, or comes from a newer version."""


class RunError(DiptychError):
    """A run that does not exist, is named ambiguously, or is in no state for what was asked."""


class QueueError(DiptychError):
    """A Redis that does not answer, or an embedded server that does not start."""


class DeviceError(DiptychError):
    """A GPU that computes nothing more for this process."""
