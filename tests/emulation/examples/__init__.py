"""Small kernels whose counts are known by hand, for the tests of the emulator."""
