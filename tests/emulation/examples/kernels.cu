// Small CUDA kernels for the tests of the emulator: their counts are known by hand.

extern "C" __global__ void copy(const float* in, float* out)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = in[i];
}

extern "C" __global__ void copy4(const float4* in, float4* out)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = in[i];
}

extern "C" __global__ void strided(const float* in, float* out, int stride)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = in[i * stride];
}

extern "C" __global__ void broadcast(const float* in, float* out)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = in[i] * in[0];
}

// A 32 x 32 tile by 32 x 32 threads. Without padding the column reads fall into one bank.
template <int PADDING>
__global__ void transpose(const float* in, float* out)
{
    __shared__ float tile[32][32 + PADDING];
    const int x = threadIdx.x, y = threadIdx.y, width = gridDim.x * 32;
    tile[y][x] = in[(blockIdx.y * 32 + y) * width + blockIdx.x * 32 + x];
    __syncthreads();
    out[(blockIdx.x * 32 + y) * width + blockIdx.y * 32 + x] = tile[x][y];
}
template __global__ void transpose<0>(const float*, float*);
template __global__ void transpose<1>(const float*, float*);

// Philox4x32-10 and Box-Muller: four normal deviates per thread.
extern "C" __global__ void philox_normal(uint4 counter, uint2 key, uint4* bits, float4* out)
{
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned c0 = counter.x + i, c1 = counter.y, c2 = counter.z, c3 = counter.w, k0 = key.x, k1 = key.y;
#pragma unroll
    for (int r = 0; r < 10; ++r) {
        const unsigned h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        const unsigned h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ k0; c1 = l1; c2 = h0 ^ c3 ^ k1; c3 = l0;
        k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
    }
    bits[i] = make_uint4(c0, c1, c2, c3);
    const float s = 2.3283064365386963e-10f, turn = 6.2831853f;
    const float ra = sqrtf(-2.f * __logf((c0 + 0.5f) * s)), rb = sqrtf(-2.f * __logf((c2 + 0.5f) * s));
    float sa, ca, sb, cb;
    __sincosf(turn * ((int)c1 * s), &sa, &ca);   // signed: within half a turn
    __sincosf(turn * ((int)c3 * s), &sb, &cb);
    out[i] = make_float4(ra * ca, ra * sa, rb * cb, rb * sb);
}

// Dependent multiply-adds in a loop whose length is known only at run time.
extern "C" __global__ void horner(const float* coefficients, int n, const float* x, float* y)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float v = x[i];
    float sum = 0.f;
    for (int k = 0; k < n; ++k) sum = fmaf(sum, v, coefficients[k]);
    y[i] = sum;
}

extern "C" __global__ void histogram(const int* bin, int* count)
{
    __shared__ int local[8];
    if (threadIdx.x < 8) local[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&local[bin[blockIdx.x * blockDim.x + threadIdx.x]], 1);
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(&count[threadIdx.x], local[threadIdx.x]);
}

// A loop that lanes leave at different times.
extern "C" __global__ void collatz(const int* in, int* out)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned v = in[i];
    int n = 0;
    while (v > 1) { v = (v & 1) ? 3 * v + 1 : v / 2; ++n; }
    out[i] = n;
}

extern "C" __global__ void stuck(float* out)
{
    if (threadIdx.x < 32) asm volatile("bar.sync 1;"); else asm volatile("bar.sync 2;");
    out[threadIdx.x] = 1.f;
}

extern "C" __global__ void integers(const unsigned* a, const unsigned* b, unsigned long long* out)
{
    const unsigned p = a[threadIdx.x], q = b[threadIdx.x];
    const unsigned long long x = p | ((unsigned long long)q << 32), y = x * 0x9E3779B97F4A7C15ull + 12345;
    unsigned low, high;
    asm("add.cc.u32 %0, %2, %3; addc.u32 %1, %4, %5;" : "=r"(low), "=r"(high) : "r"(p), "r"(q), "r"(7u), "r"(9u));
    unsigned long long* o = out + 6 * threadIdx.x;
    o[0] = y;
    o[1] = __umul64hi(x, y);
    o[2] = __popcll(x) | (__clz(p) << 8);
    o[3] = ((unsigned long long)high << 32) | low;
    o[4] = __brev(p);
    o[5] = x / (q | 1);
}

// Every block uses other shared addresses; without the last barrier there is a race.
template <bool SYNC>
__global__ void rotate(float* x)
{
    __shared__ float s[64];
    const int t = threadIdx.x, i = blockIdx.x * 64 + t;
    s[t] = x[i];
    __syncthreads();
    const float v = s[(t + blockIdx.x) & 63];
    __syncthreads();
    s[(t + 5 * blockIdx.x) & 63] = 2.f * v;
    if (SYNC) __syncthreads(); else asm volatile("");
    x[i] = s[63 - t];
}
template __global__ void rotate<false>(float*);
template __global__ void rotate<true>(float*);
