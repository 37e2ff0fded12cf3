"""Which implementation of the operators runs where: kernels where there are some, else the composite of torch.fft."""
