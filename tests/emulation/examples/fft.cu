// A Stockham FFT of radix 4 for the tests of the emulator: one block of N / 4 threads per row, 8 N bytes of dynamic
// shared memory, two barriers between stages, and each row's energy by warp shuffles.

struct Complex { float re, im; };
__device__ Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

template <int N>   // a power of 4
__global__ void __launch_bounds__(N / 4) fft(const float2* __restrict__ in, float2* __restrict__ out,
                                             float* __restrict__ energy)
{
    extern __shared__ float2 line[];
    __shared__ float partial[32];
    const int t = threadIdx.x;
    const size_t base = (size_t)blockIdx.x * N;
    Complex v[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) { const float2 z = in[base + t + r * (N / 4)]; v[r] = {z.x, z.y}; }
#pragma unroll
    for (int stride = 1; stride < N; stride *= 4) {
        const int k = t % stride;
        const float angle = -6.283185307179586f * (float)k / (float)(stride * 4);
#pragma unroll
        for (int r = 1; r < 4; ++r) { float s, c; sincosf(angle * r, &s, &c); v[r] = v[r] * Complex{c, s}; }
        const Complex a = v[0] + v[2], b = v[0] - v[2], c = v[1] + v[3], e = v[1] - v[3], d = {e.im, -e.re};
        v[0] = a + c; v[1] = b + d; v[2] = a - c; v[3] = b - d;
        const int j = (t / stride) * stride * 4 + k;
        if (stride * 4 < N) {
            __syncthreads();
#pragma unroll
            for (int r = 0; r < 4; ++r) line[j + r * stride] = make_float2(v[r].re, v[r].im);
            __syncthreads();
#pragma unroll
            for (int r = 0; r < 4; ++r) { const float2 z = line[t + r * (N / 4)]; v[r] = {z.x, z.y}; }
        } else {
#pragma unroll
            for (int r = 0; r < 4; ++r) out[base + j + r * stride] = make_float2(v[r].re, v[r].im);
        }
    }
    float sum = 0.f;
#pragma unroll
    for (int r = 0; r < 4; ++r) sum += v[r].re * v[r].re + v[r].im * v[r].im;
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, m);
    if ((t & 31) == 0) partial[t >> 5] = sum;
    __syncthreads();
    if (t < 32) {
        float s = t < (N / 4 + 31) / 32 ? partial[t] : 0.f;
#pragma unroll
        for (int m = 16; m > 0; m >>= 1) s += __shfl_xor_sync(0xffffffffu, s, m);
        if (t == 0) energy[blockIdx.x] = s;
    }
}
template __global__ void fft<256>(const float2*, float2*, float*);
template __global__ void fft<1024>(const float2*, float2*, float*);
