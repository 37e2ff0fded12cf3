#include "cpu/describe.h"
#include "cpu/plan.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <numbers>
#include <numeric>
#include <string>
#include <vector>

namespace sagd {
namespace {

using Complex = std::complex<double>;

struct Radix {
  int radix;
  double operations;  // per point, of the butterfly
};

// The butterflies of sagd/butterflies.h, largest first.
constexpr Radix butterflies[] = {{19, 20}, {17, 18}, {13, 14}, {12, 8}, {11, 12}, {10, 8}, {8, 6.75},
                                 {7, 8},   {6, 6},   {5, 6},   {4, 4},  {3, 4},   {2, 2}};
constexpr int butterfly_primes[] = {2, 3, 5, 7, 11, 13, 17, 19};

// A stage also multiplies by twiddle factors, loads and stores: worth about this many operations per point.
constexpr double pass_cost = 10;

double butterfly_cost(int radix) {
  for (const Radix& b : butterflies) {
    if (b.radix == radix) return b.operations + pass_cost;
  }
  return 0;
}

bool has_butterfly(int radix) { return butterfly_cost(radix) > 0; }

struct Factors {
  double cost = 0;  // per point
  std::vector<int> radices;
};

// n without the factors that have a butterfly.
int without_butterflies(int n) {
  for (int p : butterfly_primes) {
    while (n % p == 0) n /= p;
  }
  return n;
}

bool is_smooth(int n) { return without_butterflies(n) == 1; }

// The cheapest product of butterflies that makes a smooth n; radices descend.
Factors cheapest(int n, int largest = butterflies[0].radix) {
  if (n == 1) return {};
  Factors best{std::numeric_limits<double>::infinity(), {}};
  for (const Radix& b : butterflies) {
    if (b.radix > largest || n % b.radix) continue;
    Factors rest = cheapest(n / b.radix, b.radix);
    const double cost = rest.cost + butterfly_cost(b.radix);
    if (cost >= best.cost) continue;
    rest.radices.insert(rest.radices.begin(), b.radix);
    best = {cost, std::move(rest.radices)};
  }
  return best;
}

// Radices in the order of the forward stages: primes without a butterfly first, then from large to small, so that
// the last stage, which the filter fuses with its inverse, needs few registers.
std::vector<int> factorize(int n) {
  std::vector<int> radices;
  int large = without_butterflies(n);  // primes without a butterfly, all above 19
  for (int p = 23; large > 1; p += 2) {
    if (p * int64_t(p) > large) p = large;
    for (; large % p == 0; large /= p, n /= p) radices.insert(radices.begin(), p);
  }
  const std::vector<int> rest = cheapest(n).radices;
  radices.insert(radices.end(), rest.begin(), rest.end());
  return radices;
}

// exp(-2 pi i k / n), with the argument reduced exactly.
Complex root(int64_t k, int64_t n) {
  const double turn = double(k % n) / double(n);
  return std::polar(1.0, -2 * std::numbers::pi * turn);
}

// The transform of a few constants in double precision, by recursion over the factors; speed does not matter.
std::vector<Complex> transform(const std::vector<Complex>& x) {
  const int n = int(x.size());
  if (n == 1) return x;
  int p = 2;
  while (n % p) ++p;
  const int m = n / p;
  std::vector<Complex> result(n);
  for (int r = 0; r < p; ++r) {
    std::vector<Complex> part(m);
    for (int q = 0; q < m; ++q) part[q] = x[q * p + r];
    part = transform(part);
    for (int k = 0; k < n; ++k) result[k] += part[k % m] * root(int64_t(r) * k, n);
  }
  return result;
}

int power_mod(int64_t base, int exponent, int modulus) {
  int64_t result = 1;
  for (; exponent; exponent >>= 1, base = base * base % modulus) {
    if (exponent & 1) result = result * base % modulus;
  }
  return int(result);
}

int primitive_root(int prime) {
  std::vector<int> factors;
  for (int n = prime - 1, p = 2; n > 1; ++p) {
    if (n % p == 0) factors.push_back(p);
    while (n % p == 0) n /= p;
  }
  for (int g = 2;; ++g) {
    bool generates = true;
    for (int p : factors) generates = generates && power_mod(g, (prime - 1) / p, prime) != 1;
    if (generates) return g;
  }
}

// Constants live as long as the process: plans are few, small, and shared by all threads. Aligned to 64 bytes.
template <class T, class S>
const T* keep(const std::vector<S>& values) {
  T* kept = new (std::align_val_t{64}) T[values.size()];
  for (size_t i = 0; i < values.size(); ++i) kept[i] = T(values[i]);
  return kept;
}

template <class T>
const T* keep_pairs(const std::vector<Complex>& values) {
  std::vector<double> pairs;
  for (Complex v : values) pairs.insert(pairs.end(), {v.real(), v.imag()});
  return keep<T>(pairs);
}

template <class T>
class Planner {
 public:
  const Plan<T>& get(int length) {
    const auto found = plans_.find(length);
    if (found != plans_.end()) return *found->second;
    return *(plans_[length] = make(length));
  }

 private:
  const Plan<T>* make(int length) {
    auto* plan = new Plan<T>{};
    plan->length = length;
    const std::vector<int> radices = factorize(length);
    auto* stages = new Stage<T>[radices.size()];
    int remaining = length;
    for (size_t s = 0; s < radices.size(); ++s) {
      Stage<T>& stage = stages[s];
      stage.radix = radices[s];
      stage.blocks = length / remaining;
      stage.span = remaining / stage.radix;
      std::vector<Complex> twiddle;
      for (int q = 0; q < stage.span; ++q) {
        for (int m = 1; m < stage.radix; ++m) twiddle.push_back(root(int64_t(q) * m, remaining));
      }
      stage.twiddle = keep_pairs<T>(twiddle);
      remaining = stage.span;
      if (has_butterfly(stage.radix)) {
        stage.prime = nullptr;
        plan->cost += length * butterfly_cost(stage.radix);
      } else {
        stage.prime = make_prime(stage.radix, plan->cost, plan->scratch, length / stage.radix);
      }
    }
    plan->stages = int(radices.size());
    plan->stage = stages;

    std::vector<int> position(length), mirror(length);
    for (int k = 0; k < length; ++k) {
      for (int s = 0, rest = k; s < plan->stages; rest /= stages[s].radix, ++s) {
        position[k] += rest % stages[s].radix * stages[s].span;
      }
    }
    for (int k = 0; k < length; ++k) mirror[position[k]] = position[(length - k) % length];
    std::vector<int> half((length + 1) / 2);
    std::iota(half.begin(), half.end(), 0);
    std::sort(half.begin(), half.end(), [&](int k, int l) { return position[k] < position[l]; });
    plan->position = keep<int>(position);
    plan->half = keep<int>(half);
    plan->mirror = keep<int>(mirror);
    return plan;
  }

  // The cheapest way to transform a prime length; adds the cost of `times` transforms, raises `scratch` to the need.
  const PrimePlan<T>* make_prime(int length, double& cost, int& scratch, int times) {
    const double copies = 8.0 * length;
    const double dense = 3.0 * (length - 1) * (length - 1) + copies;  // each product waits for its loads
    const Plan<T>* rader = length < max_dense ? &get(length - 1) : nullptr;
    if (!rader && is_smooth(length - 1)) rader = &get(length - 1);
    const double rader_cost = rader ? 2 * rader->cost + 12.0 * length + copies : infinity;
    const Plan<T>* bluestein = nullptr;
    double bluestein_cost = infinity;
    for (int m = 2 * length - 1, limit = 2 * m; m <= limit; ++m) {
      if (!is_smooth(m)) continue;
      double estimate = 0;
      for (int radix : factorize(m)) estimate += m * butterfly_cost(radix);
      estimate = 2 * estimate + 4.0 * m + 16.0 * length + copies;
      if (estimate < bluestein_cost) {
        bluestein_cost = estimate;
        bluestein = &get(m);
      }
    }

    auto* prime = new PrimePlan<T>{};
    prime->length = length;
    int own_scratch = length;  // dense: the sums and differences
    if (dense <= rader_cost && dense <= bluestein_cost) {
      prime->method = PrimeMethod::dense;
      std::vector<Complex> roots;
      for (int k = 0; k < length; ++k) roots.push_back(root(k, length));
      prime->kernel = keep_pairs<T>(roots);
      cost += times * dense;
    } else if (rader_cost <= bluestein_cost) {
      prime->method = PrimeMethod::rader;
      prime->convolution = rader;
      const int g = primitive_root(length);
      std::vector<int> gather, scatter;
      std::vector<Complex> kernel;
      for (int q = 0; q < length - 1; ++q) {
        gather.push_back(power_mod(g, q, length));
        scatter.push_back(power_mod(g, length - 1 - q, length));
        kernel.push_back(root(scatter.back(), length));
      }
      prime->gather = keep<int>(gather);
      prime->scatter = keep<int>(scatter);
      prime->kernel = keep_kernel(kernel, *rader);
      own_scratch = rader->length + rader->scratch;
      cost += times * rader_cost;
    } else {
      prime->method = PrimeMethod::bluestein;
      prime->convolution = bluestein;
      std::vector<Complex> chirp, kernel(bluestein->length);
      for (int64_t n = 0; n < length; ++n) {
        chirp.push_back(root(n * n % (2 * length), 2 * length));
        kernel[n] = kernel[(bluestein->length - n) % bluestein->length] = std::conj(chirp.back());
      }
      prime->chirp = keep_pairs<T>(chirp);
      prime->kernel = keep_kernel(kernel, *bluestein);
      own_scratch = bluestein->length + bluestein->scratch;
      cost += times * bluestein_cost;
    }
    scratch = std::max(scratch, length + own_scratch);  // the gathered points, and the method's own
    return prime;
  }

  static const T* keep_kernel(const std::vector<Complex>& kernel, const Plan<T>& convolution) {
    const std::vector<Complex> spectrum = transform(kernel);
    std::vector<Complex> ordered(spectrum.size());
    for (int k = 0; k < convolution.length; ++k) {
      ordered[convolution.position[k]] = spectrum[k] / double(convolution.length);
    }
    return keep_pairs<T>(ordered);
  }

  static constexpr double infinity = std::numeric_limits<double>::infinity();
  static constexpr int max_dense = 256;  // below it Rader's transform may itself contain dense primes

  std::map<int, const Plan<T>*> plans_;
};

// For each of n vectors v the roots exp(-2 pi i turns(v, lane) / whole) of 16 lanes: real parts, then imaginary parts.
template <class T, class Turns>
const T* keep_lanes(int n, int whole, Turns turns) {
  std::vector<double> values;
  for (int v = 0; v < n; ++v) {
    for (int lane = 0; lane < 16; ++lane) values.push_back(root(turns(v, lane), whole).real());
    for (int lane = 0; lane < 16; ++lane) values.push_back(root(turns(v, lane), whole).imag());
  }
  return keep<T>(values);
}

}  // namespace

template <class T>
const Plan<T>& plan(int length) {
  static std::mutex mutex;
  static auto* planner = new Planner<T>;
  const std::lock_guard<std::mutex> lock(mutex);
  return planner->get(length);
}

template <class T>
const LaneRoots<T>& lane_roots(int width) {
  static std::mutex mutex;
  static auto* made = new std::map<int, LaneRoots<T>>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = made->find(width);
  if (found != made->end()) return found->second;
  const int n = width / 32;
  return (*made)[width] = {keep_lanes<T>(n, width, [](int v, int lane) { return 16 * v + lane; }),
                           keep_lanes<T>(n, width, [](int v, int lane) { return 2 * v * lane; }),
                           keep_lanes<T>(4, 16, [](int k, int lane) { return k * (lane % 4); })};
}

std::string describe_plan(int length) {
  const Plan<float>& made = plan<float>(length);
  std::string text = made.stages == 0 ? "1" : "";
  for (int s = 0; s < made.stages; ++s) {
    const Stage<float>& stage = made.stage[s];
    text += (s ? " x " : "") + std::to_string(stage.radix);
    if (!stage.prime) continue;
    switch (stage.prime->method) {
      case PrimeMethod::dense: text += " dense"; break;
      case PrimeMethod::rader: text += " by Rader (" + describe_plan(stage.radix - 1) + ")"; break;
      case PrimeMethod::bluestein:
        text += " by Bluestein (" + describe_plan(stage.prime->convolution->length) + ")";
    }
  }
  return text;
}

template const Plan<float>& plan<float>(int);
template const Plan<double>& plan<double>(int);
template const LaneRoots<float>& lane_roots<float>(int);

}  // namespace sagd
