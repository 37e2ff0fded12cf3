"""MKL's batched real 2-D transforms through its own C interface, DFTI: planned once, from buffer to buffer.

The wheel `mkl` brings the library. `mkl_fft` would be the Python way to it, but it transforms one plane at a time and
takes up to three times as long on small ones.

DFTI: https://www.intel.com/content/www/us/en/docs/onemkl/developer-reference-c/current/fourier-transform-functions.html
"""

import ctypes
import functools
import importlib.metadata

import numpy as np

# the constants of mkl_dfti.h that are used here
_REAL, _SINGLE, _COMPLEX_COMPLEX, _NOT_INPLACE = 33, 35, 39, 44
_NUMBER_OF_TRANSFORMS, _CONJUGATE_EVEN_STORAGE, _PLACEMENT = 7, 10, 11
_INPUT_STRIDES, _OUTPUT_STRIDES, _INPUT_DISTANCE, _OUTPUT_DISTANCE = 12, 13, 14, 15


class Plan:
    """The unnormalised transforms of float32 planes [..., H, W]: `forward` to complex64 [..., H, W//2+1], `inverse`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        height, width = shape[-2:]
        columns, planes = width // 2 + 1, int(np.prod(shape[:-2]))
        real = _longs(0, width, 1), height * width
        spectrum = _longs(0, columns, 1), height * columns
        self._forward = _descriptor(height, width, planes, real, spectrum)
        self._inverse = _descriptor(height, width, planes, spectrum, real)

    def forward(self, planes: np.ndarray, out: np.ndarray) -> None:
        _check(_library().DftiComputeForward(self._forward, _pointer(planes), _pointer(out)))

    def inverse(self, spectrum: np.ndarray, out: np.ndarray) -> None:
        _check(_library().DftiComputeBackward(self._inverse, _pointer(spectrum), _pointer(out)))

    def __del__(self) -> None:
        for descriptor in (self._forward, self._inverse):
            _library().DftiFreeDescriptor(ctypes.byref(descriptor))


@functools.cache
def _library() -> ctypes.CDLL:
    found = [file for file in importlib.metadata.files("mkl") or [] if file.name.startswith("libmkl_rt.so")]
    library = ctypes.CDLL(str(found[0].locate().resolve()))
    library.DftiErrorMessage.restype = ctypes.c_char_p
    return library


def _descriptor(height: int, width: int, planes: int, source: tuple, target: tuple) -> ctypes.c_void_p:
    library, handle = _library(), ctypes.c_void_p()
    _check(library.DftiCreateDescriptor(ctypes.byref(handle), _SINGLE, _REAL, ctypes.c_long(2), _longs(height, width)))
    for name, value in (
        (_NUMBER_OF_TRANSFORMS, ctypes.c_long(planes)),
        (_PLACEMENT, _NOT_INPLACE),
        (_CONJUGATE_EVEN_STORAGE, _COMPLEX_COMPLEX),
        (_INPUT_STRIDES, source[0]),
        (_INPUT_DISTANCE, ctypes.c_long(source[1])),
        (_OUTPUT_STRIDES, target[0]),
        (_OUTPUT_DISTANCE, ctypes.c_long(target[1])),
    ):
        _check(library.DftiSetValue(handle, name, value))
    _check(library.DftiCommitDescriptor(handle))
    return handle


def _check(status: int) -> None:
    if status:
        raise RuntimeError(_library().DftiErrorMessage(ctypes.c_long(status)).decode())


def _longs(*values: int) -> ctypes.Array:
    return (ctypes.c_long * len(values))(*values)


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
