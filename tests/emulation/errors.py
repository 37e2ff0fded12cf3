"""What the emulator reports."""


class EmulationError(RuntimeError):
    """The kernel did something illegal, such as an access out of bounds."""


class Race(EmulationError):
    """Two threads touched the same shared memory without a barrier between them."""


class Unsupported(EmulationError):
    """A PTX feature that the emulator does not model: it says so instead of guessing."""
